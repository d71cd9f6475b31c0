"""Reading, rearranging and writing checkpoints without loading them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlmflow.errors import UserError
from vlmflow.weights.checkpoint import Checkpoint
from vlmflow.weights.kinds import Joined, State
from vlmflow.weights.mapping import Operation, Rule, inverse, plan, rename
from vlmflow.weights.stream import write_tensors

SPLIT = Operation(lambda whole: whole.chunk(2), lambda *halves: (torch.cat(halves),))
RULES = [
    Rule(("layers.*.fused.weight",), ("blocks.*.left.weight", "blocks.*.right.weight"), SPLIT),
    *rename({"layers.*.norm.**": "blocks.*.norm.**", "head.weight": "lm_head.weight"}),
]


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    layers = {f"layers.{n}.fused.weight": torch.randn(4, 3, dtype=torch.bfloat16) for n in range(12)}
    norms = {f"layers.{n}.norm.weight": torch.randn(3) for n in range(12)}
    return {**layers, **norms, "head.weight": torch.randn(5, 3, dtype=torch.float16)}


def shapes(values: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in three shards, as ``transformers`` would write it."""
    values, names = tensors(), sorted(tensors())
    place = tmp_path / "checkpoint"
    place.mkdir()
    files = {f"model-0000{i}-of-00003.safetensors": names[i - 1 :: 3] for i in (1, 2, 3)}
    for file, part in files.items():
        save_file({name: values[name] for name in part}, place / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def convert(source: Path, target: Path, **options: int) -> dict[str, torch.Tensor]:
    target.mkdir()
    checkpoint = Checkpoint(source)
    pieces = plan(RULES, checkpoint.kinds)
    expected = shapes(
        {t: v for p in pieces for t, v in zip(p.targets, p.make(*map(checkpoint.read, p.sources)), strict=True)}
    )
    write_tensors(checkpoint, pieces, target, expected, **options)  # type: ignore[arg-type]
    return {name: value for file in target.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("max_shard_bytes", [10, 60, 1000, 10**9])
def test_there_and_back_is_the_same_bit_by_bit(folder: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    made = convert(folder, tmp_path / "new", max_shard_bytes=max_shard_bytes)
    assert torch.equal(made["blocks.11.right.weight"], tensors()["layers.11.fused.weight"][2:])
    checkpoint = Checkpoint(tmp_path / "new")
    back = tmp_path / "back"
    back.mkdir()
    write_tensors(checkpoint, plan(inverse(RULES), checkpoint.kinds), back, shapes(tensors()))
    found = load_file(back / "model.safetensors")
    assert set(found) == set(tensors())
    assert all(
        torch.equal(value, tensors()[name]) and value.dtype == tensors()[name].dtype for name, value in found.items()
    )


def test_shards_and_index_are_what_transformers_reads(folder: Path, tmp_path: Path) -> None:
    made = convert(folder, tmp_path / "new", max_shard_bytes=200)
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(v.nbytes for v in load_file(file).values()) <= 200 for file in files)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(made)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in made.values())
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Nothing says how to make weights of them; loaded as they are they become zeros."""
    source = State({"a": torch.randn(3), "b": torch.ones(3).to(dtype)})
    with pytest.raises(UserError, match=r"no floating-point numbers: 1 quantised tensor \(b \("):
        write_tensors(source, plan(rename({"**": "**"}), source.kinds), tmp_path, {"a": (3,), "b": (3,)})
    assert not list(tmp_path.iterdir())


def test_a_shape_that_was_not_announced_is_noticed(tmp_path: Path) -> None:
    source = State({"a": torch.zeros(3)})
    rule = Rule(("a",), ("a",), Operation(lambda t: (t if t.is_meta else t[:2],), SPLIT.backward))
    with pytest.raises(RuntimeError, match=r"a became \(2,\)"):
        write_tensors(source, plan([rule], source.kinds), tmp_path, {"a": (3,)})


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_two_sets_of_weights_are_refused(folder: Path, suffix: str) -> None:
    """Which of them a program takes is a matter of luck."""
    if suffix == "safetensors":
        save_file(tensors(), folder / "model.safetensors")
    else:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        torch.save(tensors(), folder / "pytorch_model.bin")
        (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="two sets of weights"):
        Checkpoint(folder)


def test_safetensors_come_before_pytorch_files(tmp_path: Path) -> None:
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert set(Checkpoint(tmp_path).kinds) == {"new"}


def test_sources_are_joined_under_prefixes(tmp_path: Path) -> None:
    joined = Joined({"x.": State({"a": torch.zeros(1)}), "y.": State({"a": torch.ones(1)})})
    write_tensors(joined, plan(rename({"**": "**"}), joined.kinds), tmp_path, {"x.a": (1,), "y.a": (1,)})
    assert load_file(tmp_path / "model.safetensors")["y.a"].item() == 1
    with pytest.raises(UserError, match=r"two tensors of the name x\.a"):
        Joined({"x.": State({"a": torch.zeros(1)}), "": State({"x.a": torch.ones(1)})})


def test_pytorch_files_are_read_like_the_others(tmp_path: Path) -> None:
    values = tensors()
    torch.save(values, tmp_path / "pytorch_model.bin")
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in values.items())
    torch.save(values, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert Checkpoint(tmp_path).kinds == checkpoint.kinds


def test_what_is_read_may_be_changed(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.read("head.weight").zero_()
    assert torch.equal(checkpoint.read("head.weight"), tensors()["head.weight"])


def cut(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 7)


def cut_header(folder: Path) -> None:
    os.truncate(folder / "model-00002-of-00003.safetensors", 20)


def empty(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"")


def lose(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def edit_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def rewrite_index(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    return write


def dangle(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")


def header(**changed: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}
        text = json.dumps({"a": entry}).encode()
        (folder / "model-00002-of-00003.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))

    return write


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "bytes, but its header speaks of"),
    "cut header": (cut_header, "cut off or no safetensors file"),
    "empty": (empty, "cut off or no safetensors file"),
    "missing shard": (lose, "a file that the index names is missing"),
    "ghost": (edit_index(lambda entries: entries.update(ghost="model-00001-of-00003.safetensors")), "ghost"),
    "wrong file": (edit_index(lambda e: e.update({"head.weight": "model-00003-of-00003.safetensors"})), "it is not"),
    "left out": (edit_index(lambda entries: entries.pop("head.weight")), "in no line of the index"),
    "leads out": (edit_index(lambda entries: entries.update(a="../b.safetensors")), "leads out of the folder"),
    "link to nothing": (dangle, "a link to nothing"),
    "list": (rewrite_index('{"weight_map": [1]}'), "not a weight index"),
    "null": (rewrite_index('{"weight_map": null}'), "not a weight index"),
    "number": (rewrite_index('{"weight_map": {"a": 5}}'), "not a weight index"),
    "no index": (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "not a weight index"),
    "shape lies": (header(shape=[2]), r"shape \(2,\) in 4 bytes"),
    "negative": (header(shape=[-1]), "no safetensors header"),
    "negative offset": (header(data_offsets=[-4, 0]), "no safetensors header"),
    "hole": (header(data_offsets=[4, 8]), "does not begin where"),
    "format": (header(dtype="F3"), "number format F3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused_before_anything_is_read(folder: Path, name: str) -> None:
    damage, message = BROKEN[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        Checkpoint(folder)
    assert error.value.problem.file is not None


def test_code_in_a_pytorch_file_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    torch.save({"a": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a PyTorch file of tensors"):
        Checkpoint(tmp_path)
    assert not canary.exists()


def test_every_tensor_must_be_used_and_there(folder: Path) -> None:
    del folder
    values = tensors()
    values["extra.bias"] = values.pop("head.weight")
    with pytest.raises(UserError, match=r"1 unexpected tensor \(extra\.bias\)"):
        plan(RULES, State(values).kinds)
    pair = [Rule(("q", "k"), ("qk",), Operation(lambda *parts: (torch.cat(parts),), SPLIT.forward))]
    with pytest.raises(UserError, match=r"1 missing tensor \(k\)"):
        plan(pair, State({"q": torch.zeros(2)}).kinds)


def test_nothing_is_written_when_the_result_would_not_fit(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder)
    pieces = plan(RULES, checkpoint.kinds)
    expected = {target: (2, 3) for piece in pieces for target in piece.targets if "norm" not in target}
    expected["absent"] = (1,)
    with pytest.raises(UserError) as error:
        write_tensors(checkpoint, pieces, tmp_path, expected)
    for part in ("1 missing tensor (absent)", "12 unexpected tensors", "lm_head.weight [5, 3] instead of [2, 3]"):
        assert part in str(error.value)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_shape_that_an_operation_cannot_take_names_the_tensor(tmp_path: Path) -> None:
    source = State({"layers.0.fused.weight": torch.zeros(3)})
    rule = Rule(("layers.*.fused.weight",), ("a", "b"), Operation(lambda t: t.reshape(2, 2).unbind(), SPLIT.backward))
    with pytest.raises(UserError, match=r"layers\.0\.fused\.weight \[3\]: .*shape"):
        write_tensors(source, plan([rule], source.kinds), tmp_path, {"a": (2,), "b": (2,)})


def test_two_rules_must_not_make_the_same_tensor() -> None:
    source = State({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(UserError, match="made twice"):
        write_tensors(source, plan(rename({"a": "c", "b": "c"}), source.kinds), Path(), {"c": (1,)})


@pytest.mark.parametrize("content", [b"", b"garbage", {1: torch.zeros(1)}, {"a": torch.eye(2).to_sparse()}, [1]])
def test_other_pytorch_files_are_no_checkpoints(tmp_path: Path, content: object) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=r"not a (PyTorch file|table) of tensors") as error:
        Checkpoint(tmp_path)
    assert "weights_only" not in str(error.value)
