"""What every job of the workflow depends on: exactly the configuration keys and manifests its result is made from.

The rules ask here for paths, parameters and resources, so that an edit has one obvious place. Imports no torch.
"""

from __future__ import annotations

from vlmflow.plan.gpu import GpuPlan
from vlmflow.plan.housekeeping import HousekeepingPlan
from vlmflow.plan.nodes import growing as growing
from vlmflow.plan.serve import ServePlan
from vlmflow.plan.sweeps import SweepPlan

CHECKPOINT = r"(model|pretrain|adapter|merged|converted)-[A-Za-z0-9_-]+(\+(blind|blank))?"


class Plan(SweepPlan, GpuPlan, HousekeepingPlan, ServePlan):
    """The resolved configuration as questions that rules ask."""
