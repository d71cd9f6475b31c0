"""Take over what XTuner trained as a fine-tuning result."""

from vlmflow.cli import run
from vlmflow.convert.xtuner import import_adapter

run(import_adapter)
