"""An edit that changes what a stage computes changes its fingerprint; no other edit does."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vlmflow.fingerprint import code_of

WORKFLOW = Path(__file__).parents[2] / "workflow"
Edit = Callable[[str, str, str], set[str]]


def load(package: Path) -> ModuleType:
    """The module fingerprint of a copied package, as a new process has it."""
    spec = importlib.util.spec_from_file_location("copied", package / "vlmflow" / "fingerprint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fingerprints(package: Path) -> dict[str, str]:
    """Fingerprint of every script."""
    return {path.stem: load(package).fingerprint(path) for path in (package / "scripts").glob("*.py")}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workflow")
    shutil.copytree(WORKFLOW / "vlmflow", root / "vlmflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(WORKFLOW / "scripts", root / "scripts", symlinks=True)
    (root / ".snakemake").mkdir()
    return root


@pytest.fixture
def package(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)  # where what was learnt is kept
    return copied


@pytest.fixture
def changed(package: Path) -> Edit:
    """Replace a text in a file: the scripts whose fingerprint is another one; then the text is put back."""

    def edit(file: str, old: str, new: str) -> set[str]:
        before = fingerprints(package)
        path = package / file
        text = path.read_text()
        assert old in text
        try:
            path.write_text(text.replace(old, new, 1))
            after = fingerprints(package)
        finally:
            path.write_text(text)
        return {name for name in before if before[name] != after[name]}

    return edit


def test_a_module_reaches_exactly_its_users(changed: Edit) -> None:
    trainers = {"train_projector", "train_adapter"}
    assert changed("vlmflow/training/optimizer.py", "warmup = math.ceil", "warmup = 1 + math.ceil") >= trainers
    assert changed("vlmflow/models/gguf.py", "if not path.is_file()", "if not path.exists()") == {"build_model"}


def test_imports_count_transitively(changed: Edit) -> None:
    users = changed("vlmflow/models/template.py", "IGNORED = -100", "IGNORED = -101")
    assert users >= {
        "build_model",
        "train_projector",
        "train_adapter",
        "merge_adapter",
        "ask_transformers",
        "ask_lmdeploy",
    }
    assert not users & {"fetch_source", "prepare_source", "validate_dataset", "score_answers"}


@pytest.mark.parametrize(
    "line",
    ["from vlmflow.models.gguf import x", "import vlmflow.models.gguf", "from vlmflow.models import gguf",
     "from .models import gguf", "from .models.gguf import x", "from . import models\n    from .models import gguf",
     "x = 'vlmflow.models.gguf'"],
)  # fmt: skip
def test_every_way_of_importing_counts(package: Path, line: str) -> None:
    (package / "vlmflow" / "mine.py").write_text(f"def f():\n    {line}\n")
    (package / "vlmflow" / "prepare" / "mine.py").write_text("from ..mine import f\n")
    reached = set(load(package).code_of(package / "vlmflow" / "prepare" / "mine.py"))
    files = ("models/gguf.py", "models/__init__.py", "mine.py", "prepare/__init__.py", "__init__.py")
    assert reached >= {f"vlmflow/{file}" for file in files}


def test_comments_docstrings_and_layout_do_not_count(changed: Edit) -> None:
    optimizer = "vlmflow/training/optimizer.py"
    assert changed(optimizer, '"""AdamW with', '"""Another text. AdamW with') == set()
    assert changed(optimizer, "    warmup =", "    # why\n\n    warmup =") == set()
    assert (
        changed("vlmflow/files.py", '"""Files and folders that tell', '"""Files that tell') == set()
    )  # an attribute's


def test_a_release_alone_does_not_count(changed: Edit) -> None:
    assert changed("vlmflow/__init__.py", '__version__ = "', '__version__ = "7') == set()


def test_a_data_file_belongs_to_the_module_it_is_named_after(changed: Edit) -> None:
    users = changed("vlmflow/models/template.chatml.jinja", "assistant", "bot")
    assert {"build_model", "train_adapter"} <= users


def test_a_script_itself_counts(changed: Edit) -> None:
    assert changed("scripts/merge_adapter.py", "run(merge_adapter)", "run(merge_adapter)\nprint()") == {"merge_adapter"}


def test_what_is_kept_from_earlier_runs_changes_nothing(package: Path) -> None:
    kept = package / ".snakemake" / "fingerprints.json"
    warm = fingerprints(package)
    assert kept.is_file()
    kept.write_text("damaged")
    assert fingerprints(package) == warm


def test_every_data_file_of_the_package_counts_somewhere() -> None:
    reached = {file for script in (WORKFLOW / "scripts").glob("*.py") for file in code_of(script)}
    data = {path for path in (WORKFLOW / "vlmflow").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    data -= set((WORKFLOW / "vlmflow" / "chat").iterdir())  # makes no results
    assert {path.relative_to(WORKFLOW).as_posix() for path in data if path.is_file()} <= reached


def test_how_a_training_is_launched_is_no_part_of_its_code() -> None:
    for stage in ("train_projector", "train_adapter"):
        assert not [file for file in code_of(WORKFLOW / "scripts" / f"{stage}.py") if "/cluster/" in file]


def test_an_edit_of_training_or_of_the_metrics_asks_lmdeploy_nothing_again() -> None:
    reached = code_of(WORKFLOW / "scripts" / "ask_lmdeploy.py")
    assert not [file for file in reached if "/training/" in file or "/metrics/" in file or "/plan/" in file]
    assert not [file for file in code_of(WORKFLOW / "scripts" / "ask_transformers.py") if "/metrics/" in file]
