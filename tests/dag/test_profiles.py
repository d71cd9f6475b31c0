"""Every profile plans the demo; what the Kubernetes one says agrees with the pod that it runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from repository import ROOT, jobs, snakemake

PROFILES = ROOT / "workflow" / "profiles"


@pytest.mark.parametrize("name", sorted(path.name for path in PROFILES.iterdir()))
def test_every_profile_plans_the_demo(name: str, tmp_path: Path) -> None:
    arguments = ("-n", "--profile", f"workflow/profiles/{name}", "--config", f"results={tmp_path}")
    assert jobs(snakemake(*arguments, folder=ROOT))["total"] == 27


def test_the_pod_has_what_the_kubernetes_profile_hands_out() -> None:
    profile = yaml.safe_load((PROFILES / "kubernetes" / "config.yaml").read_text())
    pod: dict[str, Any] = yaml.safe_load((PROFILES / "kubernetes" / "job.yaml").read_text())["spec"]["template"]["spec"]
    [container] = pod["containers"]
    requests = container["resources"]["requests"]
    assert container["command"][:3] == ["snakemake", "--profile", "workflow/profiles/kubernetes"]
    assert str(profile["cores"]) == requests["cpu"]
    assert str(profile["resources"]["gpu"]) == requests["nvidia.com/gpu"]
    assert profile["resources"]["mem_mb"] * 10**6 < int(requests["memory"].removesuffix("Gi")) * 2**30
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["workingDir"] in {mount["mountPath"] for mount in container["volumeMounts"]}
