"""What only a GPU can show of training: its attention kernel, 4-bit products, compilation, running out of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from train_data import make_data  # noqa: E402
from train_model import make_model  # noqa: E402

from vlmflow.models.directory import device, load_model, load_processor  # noqa: E402
from vlmflow.models.template import IGNORED  # noqa: E402
from vlmflow.training.attention import packed_attention, use_packed_attention  # noqa: E402
from vlmflow.training.batches import Packer  # noqa: E402
from vlmflow.training.fused import fuse_adapters  # noqa: E402
from vlmflow.training.objective import Objective  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no CUDA device; run `python -m pytest -m gpu tests/gpu` where there is one",
    ),
]
LENGTHS = (5, 700, 128, 1, 513)
STEPS, BATCH = 5, 16
_NOT_PACKING = ("input_ids", "supervised", "targets", "image_places")
Train = Callable[..., dict[str, Any]]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device()) if torch.is_tensor(value) else value for name, value in batch.items()}


def packing(lengths: tuple[int, ...]) -> dict[str, Any]:
    samples = [{"input_ids": torch.zeros(n, dtype=torch.long), "labels": torch.full((n,), IGNORED),
                "image_places": torch.empty(0, dtype=torch.long)} for n in lengths]  # fmt: skip
    batch = Packer(torch.bfloat16)(samples)
    return on_device({name: value for name, value in batch.items() if name not in _NOT_PACKING})


@pytest.mark.parametrize("table", [False, True])
def test_packed_attention_is_that_of_each_sample(table: bool) -> None:
    torch.manual_seed(0)
    total, packed = sum(LENGTHS), {**packing(LENGTHS), "table": table}
    del packed["position_ids"]
    q, k, v = (
        torch.randn(1, heads, total, 128, device=device(), dtype=torch.bfloat16, requires_grad=True)
        for heads in (16, 8, 8)
    )
    output, _ = packed_attention(nn.Identity(), q, k, v, None, 128**-0.5, **packed)
    weights = torch.randn(output.shape, device=output.device)
    (output.float() * weights).sum().backward()
    found = [output, q.grad, k.grad, v.grad]
    wide = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    parts = [
        scaled_dot_product_attention(one, other, value, is_causal=True, enable_gqa=True)
        for one, other, value in zip(*(tensor.split(LENGTHS, dim=2) for tensor in wide), strict=True)
    ]
    expected = torch.cat(parts, 2).transpose(1, 2)
    (expected * weights).sum().backward()
    for one, other in zip(found, [expected, *(tensor.grad for tensor in wide)], strict=True):
        assert distance(one, other) < 1e-2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InternVL2-2B's widths with two layers of language model and tower each."""
    return make_model("internvl2-2b", tmp_path_factory.mktemp("model"), layers=2)


@pytest.fixture(scope="module")
def tokens(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data("tiles7", model, tmp_path_factory.mktemp("tiles7"), STEPS * BATCH, pictures=16)


@pytest.mark.parametrize("lengths", [LENGTHS, (2048, 2048)])
def test_packed_samples_do_not_see_each_other(model: Path, lengths: tuple[int, ...]) -> None:
    """Hidden states of bf16 samples in one micro-batch are those of each alone, by transformers' own attention."""
    network = load_model(model, dtype=torch.bfloat16).to(device()).requires_grad_(False)
    language = network.model.language_model
    torch.manual_seed(0)
    embedded = torch.randn(1, sum(lengths), network.config.text_config.hidden_size, device=device())
    embedded = embedded.to(torch.bfloat16)
    expected = torch.cat(
        [language(inputs_embeds=part, use_cache=False).last_hidden_state for part in embedded.split(lengths, dim=1)], 1
    )
    use_packed_attention(language)
    found = language(inputs_embeds=embedded, use_cache=False, **packing(lengths)).last_hidden_state
    assert distance(found, expected) < 2e-2


def test_loss_is_that_of_transformers(model: Path, tokens: Path) -> None:
    """The summed loss of packed pictures and text is transformers' own, a sample at a time."""
    from train_baseline import Padded, Records

    processor = load_processor(model)
    samples = [Records(tokens, processor)[index] for index in range(3)]
    network = load_model(model, dtype=torch.bfloat16).to(device()).requires_grad_(False)
    # weights of a new model answer nearly alike whatever they see; sharper ones tell what was seen
    network.lm_head.weight.mul_(5)
    expected = 0.0
    for sample in samples:
        batch = on_device(Padded(0)([sample]))
        count = int((sample["labels"][1:] != IGNORED).sum())
        expected += float(network(**batch, use_cache=False).loss) * count
    use_packed_attention(network.model.language_model)
    placed = [{**each, "image_places": (each["input_ids"] == network.config.image_token_id).nonzero()[:, 0]}
              for each in samples]  # fmt: skip
    batch = on_device(Packer(torch.bfloat16)(placed))
    assert float(Objective(network, torch.bfloat16)(**batch)) == pytest.approx(expected, rel=2e-3)


def quantised(inputs: int, outputs: int) -> Linear4bit:
    return Linear4bit(
        inputs, outputs, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4"
    )


class Mlp(nn.Module):
    """The feed-forward half of a transformer's block, with the names and in the order of Llama's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = quantised(256, 512), quantised(256, 512), quantised(512, 256)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """The other half, without what lies between the layers that are adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = quantised(256, 256), quantised(256, 128), quantised(256, 128)
        self.o_proj, self.mlp = quantised(256, 256), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        x = x + self.o_proj(q * torch.cat([k, v], -1))
        return x + self.mlp(x)


def test_fused_adapters_are_those_of_peft() -> None:
    torch.manual_seed(0)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    blocks = nn.Sequential(Block(), Block()).to(device())
    network = get_peft_model(blocks, LoraConfig(r=16, lora_alpha=32, target_modules=names))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    x = torch.randn(3, 50, 256, device=device(), dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(3, 50, 256, device=device())

    def results() -> list[Tensor]:
        network.zero_grad()
        x.grad = None
        with torch.autocast(x.device.type, torch.bfloat16):
            output = network(x)
        (output.float() * weights).sum().backward()
        learnt = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        return [output.detach(), x.grad.clone(), *learnt]

    expected = results()
    assert len(fuse_adapters(network, torch.bfloat16)) == 8
    found = results()
    assert len(found) == len(expected) == 2 + 2 * 2 * len(names)
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < 2e-2


@pytest.mark.parametrize(("rate", "width"), [(0.0, 1000), (0.3, 1000), (0.05, 8192)])
def test_swiglu_is_that_of_torch(rate: float, width: int) -> None:
    from vlmflow.training.kernels import swiglu

    torch.manual_seed(0)
    joined = torch.randn(1, 77, 2 * width, device=device(), dtype=torch.bfloat16, requires_grad=True)
    product, dropped = swiglu(joined, rate)
    wide = joined.detach().double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    expected = nn.functional.silu(gate) * up
    first, second = (torch.randn_like(product) for _ in range(2))
    found, wanted = (product * first).sum(), (expected * first).sum()
    if dropped is not None:
        kept = dropped != 0
        assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=0.01)
        assert distance(dropped, expected * kept / (1 - rate)) < 1e-2
        found, wanted = found + (dropped * second).sum(), wanted + (expected * kept / (1 - rate) * second).sum()
    assert (dropped is None) == (rate == 0)
    assert distance(product, expected) < 1e-2
    found.backward()
    wanted.backward()
    assert distance(joined.grad, wide.grad) < 1e-2


def test_dropout_draws_the_same_mask_backward() -> None:
    from vlmflow.training.kernels import dropout

    torch.manual_seed(0)
    x = torch.ones(3, 50, 1001, device=device(), dtype=torch.bfloat16, requires_grad=True)
    first, second = dropout(x, 0.25), dropout(x, 0.25)
    first.sum().backward()
    assert torch.equal(x.grad, first)
    assert not torch.equal(first, second)
    assert float((first != 0).double().mean()) == pytest.approx(0.75, abs=0.01)
    assert float(first.max()) == pytest.approx(1 / 0.75, rel=1e-2)


@pytest.fixture(scope="module")
def train(model: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs a fine-tuning in a process of its own (memory caps and compiled code are a process's); its figures."""

    def run(method: str = "lora", untold_gib: float | None = None, **execution: Any) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("run")
        options = {"method": method, "dropout": 0.0, "learning_rate": 2e-3}
        command = [
            sys.executable, str(ROOT / "benchmarks" / "train_ours.py"), "--model", str(model), "--tokens", str(tokens),
            "--work", str(folder / "work"), "--output", str(folder / "result.json"), "--steps", str(STEPS),
            "--batch-size", str(BATCH), "--options", json.dumps(options),
            "--execution", json.dumps({"feature_cache_gb": 0, "compile": False, **execution}),
            *(["--untold-gib", str(untold_gib)] if untold_gib else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return result

    return run


def same_curve(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal losses, as far as bf16 is exact; they must have moved, or they would tell nothing."""
    assert abs(one["losses"][0] - one["losses"][-1]) > 0.1
    assert one["losses"] == pytest.approx(other["losses"], rel=5e-3)
    assert one["gradient_norms"] == pytest.approx(other["gradient_norms"], rel=5e-2)


@pytest.fixture(scope="module")
def roomy(train: Train) -> dict[str, Any]:
    return train(micro_batch_size=2, gradient_checkpointing=False)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_compiled_is_as_uncompiled(train: Train, method: str) -> None:
    how = {"method": method, "micro_batch_size": 4, "gradient_checkpointing": False}
    same_curve(train(**how), train(**how, compile=True))


@pytest.mark.parametrize("checkpointing", [1, True])
def test_checkpointing_changes_nothing(train: Train, roomy: dict[str, Any], checkpointing: bool | int) -> None:
    checkpointed = train(micro_batch_size=2, gradient_checkpointing=checkpointing)
    same_curve(roomy, checkpointed)
    assert checkpointed["peak_gib"] < roomy["peak_gib"]


def test_out_of_memory_halves_the_micro_batch(train: Train, roomy: dict[str, Any]) -> None:
    """The cap is unknown to the estimate, which would choose smaller micro-batches beforehand."""
    crowded = train(micro_batch_size=BATCH, gradient_checkpointing=False)
    cap = (roomy["peak_gib"] + crowded["peak_gib"]) / 2
    assert cap > 1.2 * roomy["peak_gib"], "the cap must let small micro-batches through"
    capped = train(micro_batch_size=BATCH, gradient_checkpointing=False, untold_gib=cap)
    assert capped["peak_gib"] <= cap < crowded["peak_gib"]
    assert capped["training"]["micro_batch_size"] < BATCH
    same_curve(roomy, crowded)
    same_curve(roomy, capped)
