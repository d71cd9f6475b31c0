"""The edit table: what runs again after an edit of a finished workflow, and nothing else.

Two experiments are finished: ``tiny`` (finetune qlora, evaluation held-out) and ``mine`` (a folder of own pictures),
which start from one pretrain. Each edit is planned with ``snakemake -n``; what is compared is rule -> number of jobs.
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import OwnRun
from repository import jobs, snakemake

Jobs = dict[str, int]
Content = Callable[[bytes], bytes]
PACKAGE = "workflow/vlmflow"
GONE = object()


@dataclass(frozen=True)
class Edit:
    """Keys of the configuration (dotted), contents of files, dates of files (globs) and options of the command."""

    rerun: Jobs
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Content] = field(default_factory=dict)
    touched: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    words: str = ""


def times(count: int, planned: Jobs) -> Jobs:
    return {rule: number * count for rule, number in planned.items()}


def asked(count: int) -> Jobs:
    """So many checkpoints answer, and their answers are scored."""
    return {"ask_transformers": count, "score_answers": count}


def to(old: str, new: str) -> Content:
    def replaced(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return replaced


def code(content: bytes) -> bytes:
    return content + b"\nEDITED = True\n"


def remark(content: bytes) -> bytes:
    return content.replace(b"\n\n", b"\n\n# A remark.\n\n", 1)


def docstring(content: bytes) -> bytes:
    return content.replace(b'"""', b'"""In other words. ', 1)


def picture(content: bytes) -> bytes:
    return content + b"more bytes, which decoders do not mind"


RULES = "workflow/rules/convert.smk"
SCHEMAS = "workflow/schemas"
REWORDED = to("description: ", "description: In other words ")

NOTHING: Jobs = {}
RENDER = {"render_report": 1}
COMPARE = {"compare_checkpoints": 1, **RENDER}
# one experiment: the final checkpoint with and without pictures, the pretrained one, the base model
SCORE = {"score_answers": 4, **COMPARE}
ASK = {"ask_transformers": 4, **SCORE}
CONVERT = {"convert_model": 1, "ask_transformers": 2, "score_answers": 2, **COMPARE}
MERGE = {"merge_adapter": 1, **CONVERT}
FINETUNE = {"train_adapter": 1, **MERGE}
PRETRAIN = {"train_projector": 1, **times(2, {**FINETUNE, **asked(3)})}
MODEL = {"build_model": 1, "count_tokens": 3, **PRETRAIN, **asked(8)}
LEAKAGE = {"check_leakage": 1, "gate_training": 1}
DATASET = {"validate_dataset": 1, "count_tokens": 1, **LEAKAGE, **FINETUNE, **ASK,
           "evaluate_baselines": 1}  # fmt: skip
# everything that the two data sets of the tiny recipe reach: all but the answers of the base model to the other one
SOURCE = {"fetch_source": 1, "prepare_source": 1, "validate_dataset": 2, "count_tokens": 2, **times(2, LEAKAGE),
          **PRETRAIN, **asked(7), "evaluate_baselines": 1}  # fmt: skip
DATA = {"validate_dataset": 3, **times(2, LEAKAGE), **PRETRAIN, "count_tokens": 3, **asked(8),
        "evaluate_baselines": 2}  # fmt: skip
EVERYTHING = {**SOURCE, **MODEL, **DATA}

CONFIGURATION = {
    "source": Edit(SOURCE, {"sources.digits.pypi": "scikit-learn==1.9.0"}),
    "validation policy": Edit(DATASET, {"datasets.digit-questions.on_error": "drop"}),
    "split": Edit(DATASET, {"datasets.mine.split.test": 0.3}),
    "repeat": Edit(FINETUNE, {"datasets.digit-questions.repeat": 2}),
    "template": Edit(MODEL, {"models.tiny.template": "vicuna"}),
    "seed of the model": Edit(MODEL, {"models.tiny.seed": 1}, words="seed was 0, is 1"),
    "pretraining": Edit(PRETRAIN, {"pretrains.projector.learning_rate": 0.5}),
    "token budget of the pretraining": Edit({"count_tokens": 1, **PRETRAIN}, {"pretrains.projector.max_length": 99}),
    "token budget": Edit({"count_tokens": 1, **FINETUNE}, {"finetunes.qlora.too_long": "drop"}),
    "learning rate": Edit(FINETUNE, {"finetunes.qlora.learning_rate": 0.1}, words="learning_rate was 0.001, is 0.1"),
    "rank": Edit(FINETUNE, {"finetunes.qlora.lora.rank": 8}, words="lora.rank was 16, is 8"),
    "method": Edit(FINETUNE, {"finetunes.mine.method": "lora"}),
    "seed": Edit(FINETUNE, {"finetunes.mine.seed": 1}),
    "merging": Edit(MERGE, {"finetunes.qlora.merge": {"base": "quantized"}}),
    "conversion": Edit(CONVERT, {"finetunes.qlora.convert.dtype": "bfloat16"}),
    "merged weights need not stay": Edit(NOTHING, {"finetunes.qlora.merge": {"keep": False}}),
    "answers": Edit(ASK, {"evaluations.held-out.max_new_tokens": 6}),
    "words around questions": Edit(ASK, {"evaluations.held-out.prompt": "{question} One word."}),
    "metrics": Edit({**SCORE, "evaluate_baselines": 1}, {"evaluations.held-out.metrics": ["anls"]}),
    "general ability": Edit(COMPARE, {"evaluations.held-out.general": True}),
    "pictures left blank": Edit({**asked(1), **COMPARE}, {"evaluations.held-out.blind": "blank"}),
    "two more checkpoints": Edit({**asked(2), **COMPARE}, {"experiments.tiny.checkpoints": ["adapter", "merged"]}),
    "blind": Edit(COMPARE, {"evaluations.held-out.blind": False}),
    "leakage": Edit(LEAKAGE, {"evaluations.held-out.leakage": "report"}),
    "leakage and rank": Edit(
        {**LEAKAGE, **FINETUNE}, {"evaluations.held-out.leakage": "report", "finetunes.qlora.lora.rank": 8}
    ),
    "title": Edit(COMPARE, {"experiments.tiny.title": "Small models"}, words="title was Tiny models learn"),
    "evaluation under another name": Edit(
        {**ASK, "evaluate_baselines": 1, **LEAKAGE},
        {"evaluations.held-out": GONE, "evaluations.other": {"dataset": "digit-questions", "max_new_tokens": 8},
         "experiments.tiny.evaluations": ["other"]},
    ),
    "unused data set": Edit(NOTHING, {"datasets.unused": {"path": "data/mine", "annotations": "answers.csv"}}),
    "experiment that shares all but one stage": Edit(
        {**FINETUNE, "count_tokens": 1, "evaluate_baselines": 1, **LEAKAGE},
        {"finetunes.other": {"init": "projector", "datasets": ["digit-questions"], "learning_rate": 0.01},
         "experiments.other": {"finetune": "other", "evaluations": ["held-out"]}},
    ),
    "experiment that shares all": Edit(
        COMPARE, {"experiments.again": {"finetune": "qlora", "evaluations": ["held-out"]}}
    ),
    "sweep of two variants, one of which is there": Edit(
        {**FINETUNE, "tabulate_sweep": 1},
        {"sweeps.ranks": {"base": "tiny", "grid": {"finetune.lora.rank": [4, 16]}}},
    ),
    "experiment gone": Edit(NOTHING, {"experiments.mine": GONE}),
    "resources of training": Edit(
        NOTHING,
        {"finetunes.qlora.resources": {
            "gpu": 2, "nodes": 2, "gpu_model": "A100-80", "gpu_memory_gb": 80, "cpus": 9, "mem_mb": 1, "runtime": 9,
            "micro_batch_size": 2, "gradient_checkpointing": True, "compile": True, "deepspeed": "zero2", "workers": 1,
            "feature_cache_gb": 1, "checkpoint_steps": 3, "checkpoint_minutes": 4, "checkpoints_kept": 5},
         "pretrains.projector.resources": {"gpu": 2, "micro_batch_size": 1}},
    ),
    "resources of other stages": Edit(
        NOTHING,
        {"evaluations.held-out.resources": {"gpu": 1, "cpus": 9, "mem_mb": 9, "runtime": 1, "micro_batch_size": 1},
         "models.tiny.resources": {"cpus": 1, "mem_mb": 1, "runtime": 1}},
    ),
}  # fmt: skip

CODE = {
    "training": Edit(PRETRAIN, files={f"{PACKAGE}/training/trainer.py": code},
                     words="workflow/vlmflow/training/trainer.py was edited"),
    "finetuning": Edit(times(2, FINETUNE), files={f"{PACKAGE}/training/finetune.py": code}),
    "merging": Edit(times(2, MERGE), files={f"{PACKAGE}/merge.py": code}),
    "metrics": Edit(times(2, {**SCORE, "evaluate_baselines": 1}),
                    files={f"{PACKAGE}/evaluation/metrics/anls.py": code}),
    "engine": Edit({**times(2, {**asked(3), **COMPARE}), **asked(8)},
                   files={f"{PACKAGE}/evaluation/engines/transformers.py": code}),
    "other engine": Edit(NOTHING, files={f"{PACKAGE}/evaluation/engines/lmdeploy.py": code}),
    "leakage": Edit(times(2, LEAKAGE), files={f"{PACKAGE}/data/leakage.py": code}),
    "template": Edit(MODEL, files={f"{PACKAGE}/models/template.chatml.jinja": to("after, end", "after, last")}),
    "fetching": Edit(SOURCE, files={f"{PACKAGE}/fetch/wheel.py": code}),
    "errors": Edit(EVERYTHING, files={f"{PACKAGE}/errors.py": code}),
    "page": Edit(times(2, RENDER), files={f"{PACKAGE}/report/render.html.j2": to("<h1", "<h1 title=''")}),
    "style": Edit(times(2, RENDER), files={f"{PACKAGE}/report/render.css": to("{", "{ ")},
                  words="workflow/vlmflow/report/render.css was edited"),
    "launcher": Edit(NOTHING, files={f"{PACKAGE}/cluster/launch.py": code, "workflow/scripts/launch.py": code}),
    "planning": Edit(NOTHING, files={f"{PACKAGE}/plan/training.py": code, f"{PACKAGE}/why.py": code}),
    "forecast": Edit(NOTHING, files={f"{PACKAGE}/cost/forecast.py": code}),
    "script": Edit(times(2, MERGE), files={"workflow/scripts/merge_adapter.py": code},
                   words="workflow/scripts/merge_adapter.py was edited"),
    "remark": Edit(NOTHING, files={f"{PACKAGE}/training/trainer.py": remark}),
    "docstring": Edit(NOTHING, files={f"{PACKAGE}/files.py": docstring}),
    "version": Edit(NOTHING, files={f"{PACKAGE}/__init__.py": to('__version__ = "', '__version__ = "9.')}),
    "message of a rule": Edit(NOTHING, files={RULES: to("Merging {", "Joining {")}),
    "command of a rule": Edit(times(2, MERGE), files={RULES: to("merge_adapter.py --", "merge_adapter.py  --")},
                              words="Code has changed since last execution"),
    "description of a key": Edit(NOTHING, files={f"{SCHEMAS}/config.schema.yaml": REWORDED}),
    "description of a format": Edit(NOTHING, files={f"{SCHEMAS}/table.schema.yaml": REWORDED}),
    "format": Edit(DATA, files={f"{SCHEMAS}/table.schema.yaml": to("minLength: 1", "minLength: 2")}),
    "pin of an environment": Edit(NOTHING, files={"envs/train.yaml": to("torch==", "torch==1")}),
}  # fmt: skip

FILES = {
    "picture": Edit(DATASET, files={"data/mine/0003.png": picture}, words="files changed in data/mine: 0003.png"),
    "picture that is new": Edit(DATASET, files={"data/mine/new.png": picture}, words="data/mine: new.png"),
    "annotations": Edit(DATASET, files={"data/mine/answers.csv": to("0003.png,Is it", "0003.png,Is it perhaps")}),
    "dates of pictures": Edit(NOTHING, touched=("data/mine/*",)),
    "weights of the base": Edit(MODEL, files={"data/tiny/vision/model.safetensors": picture}),
    "dates of everything large": Edit(NOTHING, touched=("data/tiny/*/*", "results/**/*.safetensors", "results/**/*.png",
                                                         "results/**/*.jsonl", "results/**/manifest.json")),
}  # fmt: skip

COMMAND = {
    "nothing": Edit(NOTHING),
    "threads": Edit(NOTHING, arguments=("--cores", "1", "--set-threads", "train_adapter=1")),
    "resources": Edit(NOTHING, arguments=("--set-resources", "train_adapter:mem_mb=99", "train_adapter:runtime=9")),
    "profile gpu": Edit(NOTHING, arguments=("--profile", "workflow/profiles/gpu")),
    "profile slurm": Edit(NOTHING, arguments=("--profile", "slurm")),
    "no profile": Edit(NOTHING, arguments=("--workflow-profile", "none")),
    "verbose": Edit(NOTHING, arguments=("--verbose", "--printshellcmds")),
}

TABLES = {"configuration": CONFIGURATION, "code": CODE, "files": FILES, "command": COMMAND}
EDITS = {f"{table}: {name}": edit for table, edits in TABLES.items() for name, edit in edits.items()}


@pytest.fixture(scope="module")
def planned(
    own_run: OwnRun, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, str]:
    """What snakemake plans after each of the chosen edits; two at a time, each in one of two copies."""
    copies: queue.Queue[Path] = queue.Queue()
    for _ in range(2):
        copy = shutil.copytree(own_run.folder, tmp_path_factory.mktemp("edits") / "vlm flow", symlinks=True)
        (copy / "results" / "tiny" / ".workflow" / "owner.json").unlink()
        copies.put(copy)
    config: dict[str, Any] = {}
    for file in ("config/recipes/tiny.yaml", "mine.yaml"):
        for section, nodes in yaml.safe_load((own_run.folder / file).read_text()).items():
            config[section] = {**config.get(section, {}), **nodes} if isinstance(nodes, dict) else nodes

    def plan(name: str) -> str:
        folder = copies.get()
        try:
            return plan_after(EDITS[name], folder, config)
        finally:
            copies.put(folder)

    chosen = [item.callspec.params["name"] for item in request.session.items if item.path == Path(__file__)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(chosen, pool.map(plan, chosen), strict=True))


def plan_after(edit: Edit, folder: Path, config: dict[str, Any]) -> str:
    config = deepcopy(config)
    for key, value in edit.config.items():
        *above, last = key.split(".")
        node = config
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
        if value is GONE:
            del node[last]
    (folder / "edited.yaml").write_text(yaml.safe_dump(config))
    touched = [path for pattern in edit.touched for path in folder.glob(pattern) if path.is_file()]
    assert touched or not edit.touched
    with kept(*touched, *(folder / file for file in edit.files)):
        for file, changed in edit.files.items():
            path = folder / file
            path.write_bytes(changed(path.read_bytes() if path.exists() else b""))
        for path in touched:
            path.touch()
        return snakemake("-n", "--configfile", "edited.yaml", *edit.arguments, folder=folder)


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Contents and dates of files are as before afterwards; those that were not there are gone."""
    before = {path: (path.read_bytes(), path.stat()) if path.exists() else None for path in paths}
    try:
        yield
    finally:
        for path, state in before.items():
            if state is None:
                path.unlink()
            else:
                path.write_bytes(state[0])
                os.utime(path, ns=(state[1].st_atime_ns, state[1].st_mtime_ns))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_exactly_what_depends_on_it(planned: dict[str, str], name: str) -> None:
    edit, output = EDITS[name], planned[name]
    assert {rule: count for rule, count in jobs(output).items() if rule not in ("all", "total")} == edit.rerun
    assert edit.words in output
    assert edit.rerun or "Nothing to be done" in output
