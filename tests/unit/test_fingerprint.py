"""An edit that changes what a stage computes changes its fingerprint; no other edit does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[2] / "workflow"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(WORKFLOW / "vlmflow", tmp_path / "vlmflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(WORKFLOW / "scripts", tmp_path / "scripts", symlinks=True)
    return tmp_path


def fingerprints(root: Path) -> dict[str, str]:
    """Fingerprint of every script, computed by the copied package in a process of its own."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from vlmflow.fingerprint import fingerprint\n"
        "for path in sorted(pathlib.Path(sys.argv[1], 'scripts').glob('*.py')): print(path.stem, fingerprint(path))"
    )
    output = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in output.splitlines())


def changed(package: Path, file: str, old: str, new: str) -> set[str]:
    before = fingerprints(package)
    path = package / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = fingerprints(package)
    return {name for name in before if before[name] != after[name]}


def test_a_module_reaches_exactly_its_users(package: Path) -> None:
    trainers = {"train_projector", "train_adapter"}
    assert changed(package, "vlmflow/training/optimizer.py", "warmup = math.ceil", "warmup = 1 + math.ceil") >= trainers
    assert changed(package, "vlmflow/models/gguf.py", "if not path.is_file()", "if not path.exists()") == {
        "build_model"
    }


def test_imports_count_transitively(package: Path) -> None:
    users = changed(package, "vlmflow/models/template.py", "IGNORED = -100", "IGNORED = -101")
    assert users >= {"build_model", "train_projector", "train_adapter", "merge_adapter", "evaluate_checkpoint"}
    assert not users & {"fetch_source", "prepare_source", "validate_dataset"}


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    assert changed(package, "vlmflow/training/optimizer.py", '"""AdamW with', '"""Another text. AdamW with') == set()
    assert changed(package, "vlmflow/training/optimizer.py", "    warmup =", "    # why\n\n    warmup =") == set()


def test_a_data_file_belongs_to_the_module_it_is_named_after(package: Path) -> None:
    users = changed(package, "vlmflow/models/template.chatml.jinja", "assistant", "bot")
    assert {"build_model", "train_adapter"} <= users


def test_a_script_itself_counts(package: Path) -> None:
    assert changed(package, "scripts/merge_adapter.py", "run(merge_adapter)", "run(merge_adapter)\nprint()") == {
        "merge_adapter"
    }
