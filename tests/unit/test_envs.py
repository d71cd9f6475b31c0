"""The pins: every package exactly, the same version everywhere, and enough for what runs in each environment."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from repository import ROOT
from vlmflow.fingerprint import code_of

WORKFLOW, ENVS = ROOT / "workflow", ROOT / "envs"
YAMLS = sorted(ENVS.glob("*.yaml"))
CUDA = ("nvidia-", "cuda-", "triton")
OWN = {"vlmflow"}


def pin_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pin", ENVS / "pin.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(path: Path) -> dict[str, str]:
    """Name -> version of a list of pins."""
    pairs = (pin.split("==") for pin in pin_script().pins(path))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def lists() -> dict[str, dict[str, str]]:
    found = {path.stem: pinned(path) for path in (*YAMLS, ENVS / "controller.txt")}
    return {**found, "requirements": pinned(ROOT / "requirements.txt")}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_line_of_a_conda_environment_is_an_exact_pin(path: Path) -> None:
    environment = yaml.safe_load(path.read_text())
    assert set(environment) == {"channels", "dependencies"}
    *conda, pip = environment["dependencies"]
    assert [package.split("=")[0] for package in conda] == ["python", "pip"]
    assert all(re.fullmatch(r"\w+=[\d.]+", package) for package in conda)
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", package) for package in pip["pip"])
    assert len(pip["pip"]) == len(pinned(path))


def test_the_plain_environment_is_made_of_the_same_pins(lists: dict[str, dict[str, str]]) -> None:
    """The one that `make` installs is therefore the proof that train.yaml and controller.txt can be installed."""
    train = {name: version for name, version in lists["train"].items() if not name.startswith(CUDA)}
    assert train.items() <= lists["requirements"].items()
    assert lists["controller"].items() <= lists["requirements"].items()
    assert not {"torch", "transformers"} & set(lists["controller"])
    assert "snakemake" not in lists["train"]


def test_what_is_installed_here_is_what_is_pinned(lists: dict[str, dict[str, str]]) -> None:
    """And every requirement of every package is met, so that no resolver would choose anything else."""
    for name, version in lists["requirements"].items():
        assert importlib.metadata.version(name).split("+")[0] == version, f"{name}: make .venv anew"
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if not canonicalize_name(needed.name).startswith(CUDA) and _applies(needed):
                found = lists["requirements"][canonicalize_name(needed.name)]
                assert needed.specifier.contains(found, prereleases=True), f"{name} needs {needed}"


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def test_lmdeploy_stays_within_what_it_supports(lists: dict[str, dict[str, str]]) -> None:
    lmdeploy = lists["lmdeploy"]
    assert lmdeploy["lmdeploy"] == "0.18.0"
    assert [int(part) for part in lmdeploy["peft"].split(".")[:2]] <= [0, 14]
    assert [int(part) for part in lmdeploy["torch"].split(".")] <= [2, 12, 1]
    assert lmdeploy["transformers"] == lists["train"]["transformers"]  # it reads what training wrote


@pytest.mark.network
@pytest.mark.slow
def test_the_pins_are_what_their_sources_resolve_to() -> None:
    done = subprocess.run([sys.executable, str(ENVS / "pin.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def distributions(modules: set[str]) -> set[str]:
    """The packages that top-level modules come from."""
    known = importlib.metadata.packages_distributions()
    others = modules - OWN - set(sys.stdlib_module_names)
    return {canonicalize_name(name) for module in others for name in known.get(module, [module])}


def scripts_of(environment: str) -> set[str]:
    """The scripts that rules run in an environment, with the one that starts them on GPUs."""
    rules = [rule for path in (WORKFLOW / "rules").glob("*.smk") for rule in path.read_text().split("\nrule ")[1:]]
    inside = [rule for rule in rules if f'"../../envs/{environment}.yaml"' in rule]
    return {"launch"}.union(*(re.findall(r"\{SCRIPTS\}/(\w+)\.py", rule) for rule in inside))


def imported(scripts: set[str]) -> set[str]:
    """Top-level modules that scripts import, wherever in the package."""
    modules = set[str]()
    for name in {name for script in scripts for name in code_of(WORKFLOW / "scripts" / f"{script}.py")}:
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((WORKFLOW / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules.add(node.module.split(".")[0])
    return modules


def test_stages_import_nothing_that_their_environment_lacks(lists: dict[str, dict[str, str]]) -> None:
    engine = scripts_of("lmdeploy")
    assert engine == {"launch", "ask_lmdeploy"}
    assert imported(engine) >= {"lmdeploy", "torch", "msgspec", "PIL"}
    assert distributions(imported(engine)) <= set(lists["lmdeploy"])
    others = {path.stem for path in (WORKFLOW / "scripts").glob("*.py")} - engine | {"launch"}
    assert others >= scripts_of("train")
    assert imported(others) >= {"torch", "numpy", "yaml"}
    assert distributions(imported(others)) - {"triton"} <= set(lists["train"])


def test_planning_needs_the_controller_environment_only(lists: dict[str, dict[str, str]], tmp_path: Path) -> None:
    code = (
        "import json, sys, yaml, vlmflow.report.headline; from vlmflow.plan import Plan\n"
        "Plan(yaml.safe_load(open(sys.argv[1])))\n"
        "print(json.dumps([name.split('.')[0] for name, m in sys.modules.items() if getattr(m, '__file__', '')]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "config" / "recipes" / "tiny.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(WORKFLOW)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert distributions(set(json.loads(done.stdout)) - {"_distutils_hack"}) <= set(lists["controller"])


@pytest.mark.parametrize("path", sorted((WORKFLOW / "rules").glob("*.smk")), ids=lambda path: path.name)
def test_every_command_runs_in_an_environment(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r'    conda:\n +"\.\./\.\./envs/(\w+)\.yaml"\n    envmodules:\n +\*MODULES\["(\w+)"\],', text)
    assert len(used) == len(re.findall(r"^ {4}(?:shell|script|run):$", text, re.MULTILINE))
    assert all(environment == modules and (ENVS / f"{environment}.yaml").is_file() for environment, modules in used)
