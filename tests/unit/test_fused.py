"""Adapters that are computed in groups, and attention over packed samples, against peft's and transformers' own."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vlmflow.training.attention import use_packed_attention
from vlmflow.training.fused import fuse_adapters
from vlmflow.training.prepare import _set_recompute, prepare, recompute

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
LENGTHS = (5, 17, 9)


def adapted(kind: str = "llama", quantised: bool = False, **lora: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    for name, module in list(model.named_modules()):
        if quantised and name.rpartition(".")[2] in LINEARS:
            packed = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            packed.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, packed.to("cpu"))
    network = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LINEARS, **lora}))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return network.train()


def packed(lengths: tuple[int, ...] = LENGTHS, table: bool = True) -> dict[str, Any]:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    places = torch.cat([torch.arange(length) + max(lengths) * row for row, length in enumerate(lengths)])
    slots = torch.full((len(lengths) * max(lengths),), -1)
    slots[places] = torch.arange(sum(lengths))
    return {
        "input_ids": torch.randint(100, (1, sum(lengths)), generator=torch.Generator().manual_seed(1)),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seqlens": starts,
        "max_length": max(lengths),
        "places": places,
        "slots": slots,
        "table": table,
    }


def run(network: Any, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Last hidden states, (tokens, width), and the gradient of every trained parameter of their sum of squares."""
    network.zero_grad()
    hidden = network.base_model.model.model(**inputs, use_cache=False).last_hidden_state
    (hidden**2).sum().backward()
    return hidden[0].detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("kind", "quantised"), [("llama", False), ("llama", True), ("qwen2", False)])
def test_groups_compute_what_peft_computes(kind: str, quantised: bool) -> None:
    network = adapted(kind, quantised)
    ids = packed()["input_ids"]
    theirs = run(network, input_ids=ids)
    assert len(fuse_adapters(network, torch.float32)) == 2 * 4
    assert_equal(run(network, input_ids=ids), theirs)
    assert sum(name.endswith("weight") for name in theirs[1]) == 2 * 7 * 2


def test_twice_quantised_scales_are_read_as_bitsandbytes_reads_them() -> None:
    network = adapted(quantised=True)
    layer = network.base_model.model.model.layers[0].mlp.down_proj
    before = bnb.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    assert layer.base_layer.weight.quant_state.nested
    x = torch.randn(3, 128)
    theirs = layer(x)
    fuse_adapters(network, torch.float32)
    assert_equal(layer(x), theirs)
    after = bnb.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    assert torch.equal(before, after), "saving and merging still find the base where it was"


def test_other_adapters_are_left_to_peft() -> None:
    assert not fuse_adapters(adapted(use_dora=True), torch.float32)
    unlike = adapted(alpha_pattern={"k_proj": 2})
    assert len(fuse_adapters(unlike, torch.float32)) == 2 * 3


def test_dropout_falls_on_the_adapters_input_alone() -> None:
    network = adapted(lora_dropout=0.5)
    fuse_adapters(network, torch.float32)
    layer = network.base_model.model.model.layers[0].mlp.down_proj
    x = torch.ones(2000, 128)
    difference = layer(x) - layer.base_layer(x)
    expected = 2 * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    assert_equal((difference - expected).mean(0).abs().max() < 0.1 * expected.std(), torch.tensor(True))
    assert difference.std(0).min() > 0, "the rows of one input differ"


@pytest.mark.parametrize("lengths", [LENGTHS, (8, 8, 8), (7,)], ids=["unlike", "alike", "alone"])
def test_no_packed_sample_sees_another(lengths: tuple[int, ...]) -> None:
    network = adapted()
    batch = packed(lengths)
    parts = batch["input_ids"].split(lengths, dim=1)
    alone = [run(network, input_ids=part) for part in parts]
    use_packed_attention(network.base_model.model.model)
    hidden, gradients = run(network, **batch)
    assert_equal(hidden, torch.cat([each[0] for each in alone]))
    for name, gradient in gradients.items():
        assert_equal(gradient, torch.stack([each[1][name] for each in alone]).sum(0))


def test_a_sliding_window_is_kept() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    model = Qwen2ForCausalLM(config).model
    batch = packed()
    alone = [model(part, use_cache=False).last_hidden_state for part in batch["input_ids"].split(LENGTHS, dim=1)]
    use_packed_attention(model)
    assert_equal(model(**batch, use_cache=False).last_hidden_state, torch.cat(alone, 1))


def test_recomputed_layers_give_the_same_gradients(tiny_core: Any) -> None:
    prepare(tiny_core, torch.float32, fuse=True, compiled=False)
    language = tiny_core.model.language_model
    tiny_core.train()
    results = []
    for layers in (0, 1, len(language.layers)):
        recompute(tiny_core, layers)
        assert sum(layer.gradient_checkpointing for layer in language.layers) == layers
        tiny_core.zero_grad()
        batch = packed()
        embedded = tiny_core.get_input_embeddings()(batch.pop("input_ids"))
        (language(inputs_embeds=embedded, use_cache=False, **batch).last_hidden_state ** 2).sum().backward()
        results.append({name: p.grad.clone() for name, p in language.named_parameters() if p.grad is not None})
    for name, gradient in results[0].items():
        assert torch.equal(results[1][name], gradient)
        assert torch.equal(results[2][name], gradient)


def test_patches_by_a_product_are_the_convolution(tiny_core: Any) -> None:
    side = tiny_core.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    theirs = tiny_core.model.vision_tower(pixels).last_hidden_state
    prepare(tiny_core, torch.float32, fuse=True, compiled=False)
    assert_equal(tiny_core.model.vision_tower(pixels).last_hidden_state, theirs)


@pytest.fixture
def tiny_core(tiny_model: Any) -> Any:
    from vlmflow.models.directory import load_model

    return load_model(tiny_model)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_compiled_layers_are_compiled_as_a_whole_recomputed_or_not(layers: int) -> None:
    """Without inductor, which takes minutes on a CPU: what is traced is the same."""
    network = adapted()
    language = network.base_model.model.model
    language.embed_tokens.weight.requires_grad_(True)  # as if a projector learnt: all layers get a gradient
    theirs = run(network, input_ids=packed((8, 8))["input_ids"][:, :8])
    fuse_adapters(language, torch.float32)
    torch._dynamo.reset()
    counters.clear()
    for layer in language.layers:
        layer.compile(backend="aot_eager")
    for place, layer in enumerate(language.layers):
        _set_recompute(layer, True)
        _set_recompute(layer, place < layers)
    assert_equal(run(network, input_ids=packed((8, 8))["input_ids"][:, :8]), theirs)
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["graph_break"]
