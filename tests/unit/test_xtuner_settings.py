"""How XTuner trained, as far as a checkpoint tells, must be how the configuration says; broken ones are named."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmflow.convert.xtuner import import_adapter
from vlmflow.convert.xtuner_read import lora_settings, read_xtuner
from vlmflow.errors import UserError
from xtuner_run import ALPHA, LORA, RANK, VISION_ALPHA, VISION_RANK, llava_state, make_base, options, save, write_folder

PRETTY = """SYSTEM = ''
lora_r = 512
model = dict(
    freeze_llm=True,
    llm=dict(
        pretrained_model_name_or_path='internlm/internlm2-chat-7b',
        quantization_config=dict(r=9, type='transformers.BitsAndBytesConfig'),
        type='transformers.AutoModelForCausalLM.from_pretrained'),
    llm_lora=dict(
        bias='none',
        lora_alpha=%s,
        lora_dropout=0.05,
        r=%s,
        task_type='CAUSAL_LM',%s
        type='peft.LoraConfig'),
    type='xtuner.model.LLaVAModel',
    visual_encoder_lora=dict(lora_alpha=%s, r=%s, type='peft.LoraConfig'))
optim_wrapper = dict(optimizer=dict(lr=0.0002, type='torch.optim.AdamW'))
raise SystemExit
"""
"""As mmengine's Config.pretty_text writes it, and with a line that shows when it is run."""
TRAINED = (ALPHA, RANK, "", VISION_ALPHA, VISION_RANK)
UNPARSED = "= <object at 0x7f>\n# visual_encoder_lora=dict(r=1, lora_alpha=1)\n"


@pytest.mark.parametrize("before", ["", UNPARSED], ids=["python", "not python"])
def test_settings_are_read_out_of_the_text(before: str) -> None:
    found = lora_settings(before + PRETTY % (256, 512, "use_dora=True,", 16, 64))
    assert {name: found["llm"][name] for name in ("r", "lora_alpha", "use_dora")} == {
        "r": 512, "lora_alpha": 256, "use_dora": True,
    }  # fmt: skip
    assert (found["visual_encoder"]["r"], found["visual_encoder"]["lora_alpha"]) == (64, 16)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("model = dict(llm_lora=None)", {}),
        ("(" * 5000, {}),
        ("model = dict(llm_lora=dict(bias='none'))", {"llm": {"r": 8, "lora_alpha": 8, "bias": "none"}}),
        ("model = {'llm_lora': LoraConfig(r=lora_r, lora_alpha=3)}", {"llm": {"r": None, "lora_alpha": 3}}),
        ("llm_lora = dict(r=1)\nmodel = dict(llm_lora=dict(r=2, lora_alpha=4))", {"llm": {"r": 2, "lora_alpha": 4}}),
    ],
    ids=["empty", "none", "deep", "defaults of peft", "names and a table", "the model's own"],
)  # fmt: skip
def test_other_spellings(text: str, settings: dict[str, Any]) -> None:
    assert lora_settings(text) == settings


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((256, *TRAINED[1:]), r"lora_alpha is 256, the configuration says 6 \(llm_lora of"),
        ((ALPHA, 8, *TRAINED[2:]), "r is 8, the configuration says 4"),
        ((*TRAINED[:3], 16, VISION_RANK), r"lora_alpha is 16, the configuration says 5 \(visual_encoder_lora of"),
        ((ALPHA, RANK, "use_dora=True,", *TRAINED[3:]), "adapters with use_dora: True"),
        ((ALPHA, RANK, "use_rslora=True,", *TRAINED[3:]), "adapters with use_rslora: True"),
    ],
)
def test_a_file_that_was_trained_in_another_way_is_refused(
    tmp_path: Path, values: tuple[Any, ...],
    reason: str,
) -> None:  # fmt: skip
    path = save(llava_state(), tmp_path / "a.pth", PRETTY % values)
    with pytest.raises(UserError, match=reason) as caught:
        read_xtuner(path, LORA)
    assert caught.value.problem.file == path


def test_a_file_that_agrees_is_taken_and_one_that_does_not_tell_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    read_xtuner(save(llava_state(), tmp_path / "a.pth", PRETTY % TRAINED), LORA)
    assert not caplog.messages
    read_xtuner(save(llava_state(), tmp_path / "b.pth"), LORA)
    assert "llm was adapted; taken from the configuration: rank: 4, alpha: 6" in caplog.text
    assert "taken from the configuration: vision_rank: 3, vision_alpha: 5" in caplog.text


def test_the_configuration_beside_deepspeeds_weights_is_checked(tmp_path: Path) -> None:
    content = {"module": llava_state(), "meta": {"cfg": PRETTY % (256, *TRAINED[1:])}}
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="lora_alpha is 256"):
        read_xtuner(tmp_path, LORA)


FIRST = "projector.model.0.bias"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (FIRST, lambda value: value.int(), f"{FIRST} has numbers of the format int32"),
        (FIRST, lambda value: value.to(torch.complex64), f"{FIRST} has numbers of the format complex64"),
        (FIRST, lambda value: value.to(torch.float8_e4m3fn), f"{FIRST} has numbers of the format float8_e4m3fn"),
        (FIRST, lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), f"{FIRST} is a quantised tensor"),
        (FIRST, lambda value: value.to_sparse(), f"{FIRST} is a sparse tensor"),
        (FIRST, lambda value: value.to("meta"), f"{FIRST} is a tensor without values"),
        ("iter", lambda _: 3, "iter is no tensor but int"),
        (3, lambda _: torch.ones(1), "entry 3 is named by int"),
        ("llm.a.lora_magnitude_vector.default.weight", lambda _: torch.ones(1), "adapters with use_dora"),
    ],
)
def test_entries_that_are_no_weights_are_named(
    tmp_path: Path, name: Any,
    change: Callable[[Any], Any], reason: str,
) -> None:  # fmt: skip
    state: dict[Any, Any] = llava_state()
    state[name] = change(state.get(name))
    with pytest.raises(UserError, match=reason) as caught:
        read_xtuner(save(state, tmp_path / "a.pth"), LORA)
    assert caught.value.problem.file == tmp_path / "a.pth"
    assert "XTuner" in caught.value.problem.advice


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("llm_adapter/adapter_config.json", b"{}", "r and lora_alpha are not there"),
        ("llm_adapter/adapter_config.json", b"[]", "r and lora_alpha are not there"),
        ("llm_adapter/adapter_config.json", None, "so that alpha is not known"),
        ("llm_adapter/adapter_model.bin", b"PK\x03\x04 and not the rest", "cut off or not a PyTorch file"),
        ("projector/pytorch_model.bin", b"text", "cut off or not a PyTorch file"),
        ("projector/pytorch_model.bin", None, "no weights"),
        ("projector", None, "no such folder"),
    ],
)
def test_broken_folders_are_named(tmp_path: Path, file: str, content: bytes | None, reason: str) -> None:
    place = write_folder(tmp_path / "hf", llava_state(), False) / file
    if content is not None:
        place.write_bytes(content)
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    with pytest.raises(UserError, match=reason) as caught:
        read_xtuner(tmp_path / "hf", LORA)
    assert caught.value.problem.file is not None
    assert "snakemake" not in caught.value.problem.advice


def test_an_empty_index_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", llava_state(), True)
    (folder / "projector/model.safetensors").unlink()
    (folder / "projector/model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(UserError, match="no tensors in it"):
        read_xtuner(folder, LORA)


def test_other_files_in_place_of_a_checkpoint(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_text("version 1\nhello\n" * 9)
        with pytest.raises(UserError, match="cut off or not a PyTorch file") as caught:
            read_xtuner(tmp_path / name, LORA)
        assert "the .pth file or directory that XTuner wrote" in caught.value.problem.advice


def test_the_advice_is_about_a_checkpoint(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llava")
    state = {name: value for name, value in llava_state().items() if name != FIRST}
    for wrong in (state, {**state, "mlp1.0.bias": torch.ones(1)}):
        with pytest.raises(UserError) as caught:
            import_adapter(options(), save(wrong, tmp_path / "a.pth"), base, tmp_path / "out" / "manifest.json")
        assert "the model that it trained" in caught.value.problem.advice
