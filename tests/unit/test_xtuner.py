"""What XTuner trained becomes an adapter that changes the model by exactly what was learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import InternVLForConditionalGeneration, LlavaForConditionalGeneration

from vlmflow.convert.xtuner import import_adapter
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest
from vlmflow.merge import merge_adapter
from vlmflow.training.options import FinetuneOptions
from vlmflow.training.parts import load_parts, part_file
from xtuner_run import (
    ALPHA,
    BLOCK,
    CLIP,
    FFN,
    GROUP,
    HEAD_DIM,
    HIDDEN,
    INTERNLM2,
    KV_HEADS,
    LAYERS,
    LLAMA,
    PATCHES,
    PHI3,
    PICTURE,
    RANK,
    VISION,
    VISION_ALPHA,
    VISION_LAYERS,
    WRAP,
    State,
    adapters,
    full_state,
    internvl_state,
    linear,
    llava_state,
    make_base,
    mlp1,
    options,
    save,
    write_folder,
)


def update(state: State, name: str, alpha: float) -> torch.Tensor:
    """What an adapter adds to the matrix ``name`` (LoRA: alpha / rank * B A)."""
    down = next(value for key, value in state.items() if key.endswith(f"{name}.lora_A.default.weight"))
    up = next(value for key, value in state.items() if key.endswith(f"{name}.lora_B.default.weight"))
    return alpha / len(down) * up.double() @ down.double()


def internlm2_rows() -> dict[str, list[int]]:
    """Rows of ``wqkv`` that are q, k and v, by modeling_internlm2.py: 'b q (h gs d)', with gs = queries, key, value."""
    rows: dict[str, list[int]] = {"q": [], "k": [], "v": []}
    for row in range(KV_HEADS * GROUP * HEAD_DIM):
        place = row // HEAD_DIM % GROUP
        rows["k" if place == GROUP - 2 else "v" if place == GROUP - 1 else "q"].append(row)
    return rows


def language_updates(state: State, layout: str) -> State:
    """Native name -> learnt change, worked out of the original layout independently of the importer."""
    updates = {}
    renamed = {"attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
               "feed_forward.w2": "mlp.down_proj"}  # fmt: skip
    for layer in range(LAYERS):
        native, old = f"model.language_model.layers.{layer}.", f"model.layers.{layer}."
        if layout == "internlm2":
            fused = update(state, old + "attention.wqkv", ALPHA)
            for part, rows in internlm2_rows().items():
                updates[f"{native}self_attn.{part}_proj.weight"] = fused[rows]
            for name, new in renamed.items():
                updates[f"{native}{new}.weight"] = update(state, old + name, ALPHA)
        else:
            for name in LLAMA if layout == "llama" else PHI3:
                short = name.removeprefix(BLOCK)
                updates[f"{native}{short}.weight"] = update(state, old + short, ALPHA)
    if layout == "internlm2":
        updates["lm_head.weight"] = update(state, ".output", ALPHA)
    return updates


def vision_updates(state: State, family: str) -> State:
    updates = {}
    for layer in range(VISION_LAYERS):
        if family == "llava":
            for name in CLIP:
                short = name.replace("*", str(layer))
                updates["model.vision_tower." + short + ".weight"] = update(state, short, VISION_ALPHA)
            continue
        native, old = f"model.vision_tower.encoder.layer.{layer}.", f"vision_model.{WRAP}encoder.layers.{layer}."
        fused = update(state, old + "attn.qkv", VISION_ALPHA)
        for index, part in enumerate("qkv"):
            rows = slice(index * VISION, (index + 1) * VISION)
            updates[f"{native}attention.{part}_proj.weight"] = fused[rows]
        for name, new in {
            "attn.proj": "attention.projection_layer",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            updates[f"{native}{new}.weight"] = update(state, old + name, VISION_ALPHA)
    return updates


def projector_of(state: State, family: str) -> State:
    places = {"llava": {"projector.model.0": "linear_1", "projector.model.2": "linear_2"},
              "internvl": {"mlp1.0": "layer_norm", "mlp1.1": "linear_1", "mlp1.3": "linear_2"}}[family]  # fmt: skip
    return {
        f"{new}.{kind}": next(value for name, value in state.items() if name.endswith(f"{old}.{kind}"))
        for old, new in places.items()
        for kind in ("weight", "bias")
    }


def load(model: Path, family: str) -> Any:
    kind = LlavaForConditionalGeneration if family == "llava" else InternVLForConditionalGeneration
    return kind.from_pretrained(model.parent).eval()


def logits(network: Any) -> torch.Tensor:
    torch.manual_seed(3)
    ids = torch.tensor([[1, *[PICTURE] * PATCHES, 9, 10, 11, 12]])
    with torch.no_grad():
        result: torch.Tensor = network(input_ids=ids, pixel_values=torch.randn(1, 3, 16, 16)).logits
    return result


def check_exact(model: Path, adapter: Path, family: str, updates: State, projector: State) -> None:
    """The adapter loads without a missing or unexpected tensor and adds ``updates``, nothing else."""
    base = load(model, family).state_dict()
    inner = any(".vision_model." in name for name in base)
    if not inner:  # some releases of transformers have one module less
        updates = {name.replace("vision_tower.vision_model.", "vision_tower."): new for name, new in updates.items()}
    network = load(model, family)
    load_parts(network, adapter)
    wrapped = PeftModel.from_pretrained(network, adapter.parent)
    stored = load_file(adapter.parent / "adapter_model.safetensors")
    active = {name.replace(".default.weight", ".weight"): value for name, value in wrapped.state_dict().items()}
    assert {name for name in active if ".lora_" in name} == set(stored)
    assert all(torch.equal(active[name], value) for name, value in stored.items())
    before = logits(wrapped.eval())
    merged = wrapped.merge_and_unload()
    assert (logits(merged) - before).abs().max() < 1e-3 * before.abs().max()
    expected = load(model, family)
    values = expected.state_dict()
    for name, change in updates.items():
        values[name] += change.to(values[name].dtype)
    for name, value in projector.items():
        values[f"model.multi_modal_projector.{name}"] = value
    expected.load_state_dict(values)
    after = merged.state_dict()
    assert {name for name, value in after.items() if not torch.equal(value, base[name])} == {
        *updates, *(f"model.multi_modal_projector.{name}" for name in projector)
    }  # fmt: skip
    for name, value in after.items():
        assert torch.allclose(value, values[name], rtol=1e-5, atol=1e-5), name
    assert (logits(expected) - logits(merged)).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize(
    ("family", "text", "names"),
    [
        ("llava", "internlm2", INTERNLM2),
        ("llava", "llama", LLAMA),
        ("internvl", "internlm2", INTERNLM2),
        ("internvl", "qwen2", LLAMA),
        ("internvl", "phi3", PHI3),
    ],
)
def test_every_family_exactly(tmp_path: Path, family: str, text: str, names: dict[str, tuple[int, int]]) -> None:
    model = make_base(tmp_path / "base", family, "llama" if text == "internlm2" else text)
    state = llava_state(names) if family == "llava" else internvl_state(names)
    output = tmp_path / "out" / "manifest.json"
    import_adapter(options("qlora"), save(state, tmp_path / "iter_1.pth"), model, output)
    layout = {"qwen2": "llama"}.get(text, text)
    updates = language_updates(state, layout) | vision_updates(state, family)
    check_exact(model, output, family, updates, projector_of(state, family))
    manifest, provenance = read_manifest(output), read_json(output.parent / "provenance.json")
    assert manifest["base"] == read_manifest(model)["hash"]
    assert FinetuneOptions(**provenance["config"]) == options("qlora")
    assert provenance["imported"] == {
        "from": "xtuner", "tensors": len(state), "adapts_output_matrix": text == "internlm2"
    }  # fmt: skip


def same_artefact(first: Path, second: Path) -> bool:
    return bool(read_manifest(first)["hash"] == read_manifest(second)["hash"])


@pytest.mark.parametrize("model_prefix", ["model.", "", "base_model.model."])
@pytest.mark.parametrize("wrap", [WRAP, ""])
@pytest.mark.parametrize("mark", [".default", ""])
def test_prefixes_make_no_difference(tmp_path: Path, model_prefix: str, wrap: str, mark: str) -> None:
    plain, other = tmp_path / "plain" / "manifest.json", tmp_path / "other" / "manifest.json"
    model = make_base(tmp_path / "base", "internvl")
    import_adapter(options(), save(internvl_state(), tmp_path / "a.pth"), model, plain)
    state = internvl_state(model=model_prefix, wrap=wrap, mark=mark)
    import_adapter(options(), save(state, tmp_path / "b.pth"), model, other)
    assert same_artefact(plain, other)


def test_a_directory_of_deepspeed(tmp_path: Path) -> None:
    file, folder = tmp_path / "file" / "manifest.json", tmp_path / "folder" / "manifest.json"
    model = make_base(tmp_path / "base", "internvl")
    import_adapter(options(), save(internvl_state(), tmp_path / "a.pth"), model, file)
    (tmp_path / "iter_1.pth").mkdir()
    torch.save({"module": internvl_state(), "ds_version": "0"}, tmp_path / "iter_1.pth" / "mp_rank_00_model_states.pt")
    import_adapter(options(), tmp_path / "iter_1.pth", model, folder)
    assert same_artefact(file, folder)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_folder_of_pth_to_hf(tmp_path: Path, safe: bool) -> None:
    file, folder = tmp_path / "file" / "manifest.json", tmp_path / "folder" / "manifest.json"
    import_adapter(options(), save(llava_state(), tmp_path / "a.pth"), make_base(tmp_path / "base", "llava"), file)
    source = write_folder(tmp_path / "hf", llava_state(), safe)
    import_adapter(options(), source, make_base(tmp_path / "base", "llava"), folder)
    assert same_artefact(file, folder)
    with pytest.raises(UserError, match="lora_alpha is 6, the configuration says 7") as caught:
        import_adapter(options(alpha=7), source, make_base(tmp_path / "base", "llava"), folder)
    assert caught.value.problem.file == source / "llm_adapter" / "adapter_config.json"
    config = read_json(source / "llm_adapter" / "adapter_config.json")
    (source / "llm_adapter" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match="adapters with use_dora: True"):
        import_adapter(options(), source, make_base(tmp_path / "base", "llava"), folder)


@pytest.mark.parametrize("family", ["llava", "internvl"])
def test_full_weights(tmp_path: Path, family: str) -> None:
    prefix = "llm." if family == "llava" else "model.language_model."
    state = full_state(prefix)
    state |= {name: value for name, value in llava_state().items() if name.startswith("projector")} if (
        family == "llava"
    ) else mlp1("model.")  # fmt: skip
    output = tmp_path / "out" / "manifest.json"
    import_adapter(options("full"), save(state, tmp_path / "a.pth"), make_base(tmp_path / "base", family), output)
    weights = load_file(output.parent / part_file("language"))
    network = load(make_base(tmp_path / "base", family), family)
    language = {name for name in network.state_dict() if name.startswith(("model.language_model.", "lm_head."))}
    assert set(weights) == language
    fused = state[f"{prefix}model.layers.1.attention.wqkv.weight"]
    for part, rows in internlm2_rows().items():
        assert torch.equal(weights[f"model.language_model.layers.1.self_attn.{part}_proj.weight"], fused[rows])
    assert torch.equal(weights["lm_head.weight"], state[f"{prefix}output.weight"])
    assert torch.equal(
        weights["model.language_model.layers.0.mlp.up_proj.weight"],
        state[f"{prefix}model.layers.0.feed_forward.w3.weight"],
    )
    assert not (output.parent / "adapter_config.json").exists()
    del state[f"{prefix}model.norm.weight"]
    with pytest.raises(UserError, match=r"1 missing tensor \(model.language_model.norm.weight\)"):
        import_adapter(options("full"), save(state, tmp_path / "a.pth"), make_base(tmp_path / "base", family), output)


def test_a_tied_output_matrix(tmp_path: Path) -> None:
    model = make_base(tmp_path / "base", "llava", tie_word_embeddings=True)
    prefix, native = "llm.", load(model, "llava").state_dict()
    state = {
        prefix + name.replace("model.language_model.", "model."): torch.randn_like(value)
        for name, value in native.items()
        if name.startswith("model.language_model.")
    }
    state |= {name: value for name, value in llava_state().items() if name.startswith("projector")}
    state["llm.lm_head.weight"] = state["llm.model.embed_tokens.weight"].clone()
    output = tmp_path / "out" / "manifest.json"
    import_adapter(options("full"), save(state, tmp_path / "a.pth"), model, output)
    assert "lm_head.weight" not in load_file(output.parent / part_file("language"))
    state["llm.lm_head.weight"] += 1
    with pytest.raises(UserError, match="one matrix"):
        import_adapter(options("full"), save(state, tmp_path / "a.pth"), model, output)
    with pytest.raises(UserError, match="which is the embedding"):
        import_adapter(options(), save(llava_state(), tmp_path / "a.pth"), model, output)


def test_what_was_imported_can_be_merged(tiny_model: Path, tmp_path: Path) -> None:
    """Over a base with tokenizer and processor, through the stage that comes next."""
    torch.manual_seed(5)
    sizes = {name: {(HIDDEN, HIDDEN): (64, 64), (FFN, HIDDEN): (128, 64), (HIDDEN, FFN): (64, 128)}.get(size, (32, 64))
             for name, size in LLAMA.items()}  # fmt: skip
    state = adapters(f"llm.{WRAP}", 2, sizes, RANK) | linear("projector.model.0", 64, 32)
    state |= linear("projector.model.2", 64, 64)
    adapter = tmp_path / "adapter" / "manifest.json"
    import_adapter(options(vision_rank=0), save(state, tmp_path / "a.pth"), tiny_model, adapter)
    merge_adapter({"base": "original"}, tiny_model, adapter, tmp_path / "merged" / "manifest.json")
    read_manifest(tmp_path / "merged" / "manifest.json")
