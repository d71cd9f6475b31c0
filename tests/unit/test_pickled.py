"""Training checkpoints are read without running anything that is in them."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlmflow.convert.pickled import read_training_checkpoint
from vlmflow.errors import UserError

STATE = OrderedDict({"projector.model.0.weight": torch.arange(6.0).view(2, 3), "llm.b": torch.ones(2).bfloat16()})


class Hostile:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.fixture
def bookkeeping() -> Iterator[dict[str, Any]]:
    """What MMEngine stores beside the weights: history buffers with their methods, numpy scalars, the text of a config.

    Source: mmengine/logging/history_buffer.py and MessageHub.state_dict; the package is not needed to read it.
    """
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.array([1.0, 2.0])
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> None:
            raise AssertionError

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    packages = {name: types.ModuleType(name) for name in ("mmengine", "mmengine.logging")}
    sys.modules.update(packages | {module.__name__: module})
    yield {"meta": {"cfg": "model = dict()", "epoch": 1, "time": "20240601_120000", "seed": np.int64(3)},
           "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict(iter=9)},
           "param_schedulers": [{"last_step": 2, "verbose": False}]}  # fmt: skip
    for name in (module.__name__, *packages):
        sys.modules.pop(name, None)


def check(state: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in STATE.items())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old format"])
def test_a_file_of_mmengine(tmp_path: Path, bookkeeping: dict[str, Any], new: bool) -> None:
    content = {"state_dict": STATE, **(bookkeeping if new else {"meta": {"epoch": 1}})}
    torch.save(content, tmp_path / "iter_10.pth", _use_new_zipfile_serialization=new)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        del sys.modules[name]
    check(read_training_checkpoint(tmp_path / "iter_10.pth").weights)
    assert not any(name.startswith("mmengine") for name in sys.modules)


def test_a_plain_table(tmp_path: Path) -> None:
    torch.save(dict(STATE), tmp_path / "a.pth")
    check(read_training_checkpoint(tmp_path / "a.pth").weights)


def save_raw(content: object, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def save_zip(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol)


def save_old(content: object, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", [save_zip, save_old, save_raw])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (exec, ("open('{}', 'w')",), "exec"),
        (subprocess.check_output, (["touch", "{}"],), ".check_output"),
        (np.save, ("{}", 1), "numpy.save"),
    ],
    ids=["system", "eval", "exec", "subprocess", "numpy"],
)
def test_hostile_files_run_nothing(
    tmp_path: Path,
    save: Callable[..., None],
    protocol: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    name: str,
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pth"

    def aimed(value: Any) -> Any:
        if isinstance(value, list):
            return [aimed(part) for part in value]
        return value.format(canary) if isinstance(value, str) else value

    save({"state_dict": STATE, "meta": Hostile(function, *map(aimed, arguments))}, path, protocol)
    with pytest.raises(UserError) as caught:
        read_training_checkpoint(path)
    assert caught.value.problem.file == path
    assert name in caught.value.problem.reason
    assert not list(tmp_path.glob("canary*"))


def rewritten(path: Path, instructions: bytes) -> None:
    """A checkpoint whose pickle is ``instructions``."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, instructions if entry.endswith("data.pkl") else source.read(entry))


def test_what_an_inert_object_gives_cannot_be_called(tmp_path: Path) -> None:
    """``getattr(mmengine.Config, 'x')('y')``, of names that are all accepted."""
    get = b"cbuiltins\ngetattr\n(cmmengine.config\nConfig\nX\x01\x00\x00\x00xtR"
    rewritten(tmp_path / "a.pth", b"\x80\x02" + get + b"(X\x01\x00\x00\x00ytR.")
    with pytest.raises(UserError, match="not a PyTorch file of tensors: Trying to call reduce for"):
        read_training_checkpoint(tmp_path / "a.pth")


def test_names_of_bookkeeping_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of an accepted name that lies in the path stays unread."""
    (tmp_path / "xtuner.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\ndef go(*_): import canary\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rewritten(tmp_path / "a.pth", b"\x80\x02cxtuner.x\ngo\n)R.")
    with pytest.raises(UserError, match="holds no weights by name"):
        read_training_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a PyTorch file"), (b"PK\x03\x04" + b"\0" * 60, "not a PyTorch file"), (b"text", "not a PyTorch file")],
)
def test_files_that_are_nothing(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_training_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("name", ["a.pth", "iter_1.pth/mp_rank_00_model_states.pt"])
def test_a_truncated_file(tmp_path: Path, name: str, new: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"module": {"a": torch.ones(10_000)}}, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for size in (1, 2, 10, 2000, len(whole) // 2, 20_000, len(whole) - 2000, len(whole) - 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut off or not a PyTorch file") as caught:
            read_training_checkpoint(tmp_path / name.split("/")[0])
        assert caught.value.problem.file == path


def test_plain_containers_in_the_bookkeeping(tmp_path: Path) -> None:
    meta = {"rows": deque([1, 2], 5), "tables": defaultdict(list, a=[1]), "nested": defaultdict(dict), "cfg": "a = 1"}
    torch.save({"state_dict": STATE, "meta": meta}, tmp_path / "a.pth")
    trained = read_training_checkpoint(tmp_path / "a.pth")
    check(trained.weights)
    assert trained.config == "a = 1"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {"a": 1}}, "its entry a is no tensor but int"),
        ({"state_dict": {}}, "holds no weights"),
        ([torch.ones(1)], "holds no weights"),
    ],
)
def test_no_table_of_tensors(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=reason):
        read_training_checkpoint(tmp_path / "a.pth")


def test_a_directory_of_stage_2(tmp_path: Path, bookkeeping: dict[str, Any]) -> None:
    """DeepSpeedEngine._save_checkpoint: the model under ``module``, MMEngine's state beside it."""
    folder = tmp_path / "iter_10.pth"
    folder.mkdir()
    content = {"module": STATE, "param_shapes": [], "ds_config": {"train_batch_size": 8}, **bookkeeping}
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    torch.save(Hostile(os.system, "true"), folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")  # is not read
    check(read_training_checkpoint(folder).weights)
    check(read_training_checkpoint(folder / "mp_rank_00_model_states.pt").weights)


def write_stage_3(folder: Path, state: dict[str, torch.Tensor], processes: int) -> None:
    """As DeepSpeedZeroOptimizer_Stage3 does: two parameter groups, each process has a share of every tensor."""
    folder.mkdir(parents=True)
    names = list(state)
    groups = [names[:1], names[1:]]
    shapes = [OrderedDict((name, state[name].shape) for name in group) for group in groups]
    for rank in range(processes):
        flat = []
        for group in groups:
            shares = []
            for name in group:
                share = -(-state[name].numel() // processes)
                row = torch.zeros(share * processes)
                row[: state[name].numel()] = state[name].flatten()
                shares.append(row[rank * share : (rank + 1) * share])
            flat.append(torch.cat(shares))
        empty: dict[str, Any] = {"module": {}, "buffer_names": [], "shared_params": {}}
        model = {**empty, "param_shapes": shapes, "frozen_param_shapes": None, "frozen_param_fragments": None}
        torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        optimizer = {"zero_stage": 3, "partition_count": processes, "fp32_flat_groups": flat}
        file = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.14.0"}, file)


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"llm.a": torch.randn(3, 5), "llm.b": torch.randn(7), "projector.model.0.bias": torch.randn(2, 2, 3)}


@pytest.mark.parametrize("processes", [1, 2, 4, 11])
def test_a_directory_of_stage_3(tmp_path: Path, processes: int) -> None:
    write_stage_3(tmp_path / "iter_10.pth", trained(), processes)
    state = read_training_checkpoint(tmp_path / "iter_10.pth").weights
    assert list(state) == list(trained())
    assert all(torch.equal(state[name], value) for name, value in trained().items())


def test_stage_3_is_put_together_as_deepspeed_does(tmp_path: Path) -> None:
    zero_to_fp32 = pytest.importorskip("deepspeed.utils.zero_to_fp32")
    write_stage_3(tmp_path / "iter_10.pth", trained(), 4)
    theirs = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="iter_10.pth")
    ours = read_training_checkpoint(tmp_path / "iter_10.pth").weights
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_incomplete_directories(tmp_path: Path) -> None:
    folder = tmp_path / "iter_10.pth"
    write_stage_3(folder, trained(), 3)
    files = sorted(folder.glob("*_optim_states.pt"))
    files[1].rename(tmp_path / "kept")
    with pytest.raises(UserError, match="are missing"):
        read_training_checkpoint(folder)
    files[2].rename(files[1])
    with pytest.raises(UserError, match="one of 3 files, but there are 2"):
        read_training_checkpoint(folder)
    with pytest.raises(UserError, match=r"name one of iter_10.pth"):
        read_training_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_training_checkpoint(tmp_path / "none.pth")


def test_weights_split_over_tensor_parallel_processes_are_refused(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save({"module": STATE}, tmp_path / f"mp_rank_{rank:02d}_model_states.pt")
    with pytest.raises(UserError, match="tensor parallelism"):
        read_training_checkpoint(tmp_path)
