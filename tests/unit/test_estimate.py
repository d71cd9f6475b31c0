"""Parameters, operations and memory that are predicted from a configuration, against the real models and runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_published import count, native, published_names
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Dinov2Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Phi3Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from vlmflow.cost.estimate import GIB, memory, step_flops
from vlmflow.cost.shape import Shape
from vlmflow.cost.speed import CARDS, card_named, seconds
from vlmflow.cost.split import choose
from vlmflow.cost.workload import Parallel, Split, Training, trained_parameters
from vlmflow.errors import UserError
from vlmflow.models.families import family_of_model
from vlmflow.training.adapters import lora_config
from vlmflow.training.options import FinetuneOptions, PretrainOptions
from vlmflow.training.parts import PARTS, train_parts
from vlmflow.weights.skeleton import expected_tensors, skeleton

RECORD = (2048, 7, 128)
"""Tokens, tiles and supervised tokens of the measurements: 7 tiles and 256 tokens of text."""
PEFT = Training(rank=128, dropout=True, fused=False)
MEASURED = [  # GiB at the peak of an H200, InternVL2-2B in bf16, LoRA of rank 128 and projector, one micro-batch a step
    (31.7, 4, 0, replace(PEFT, compiled=False)),
    (58, 8, 0, replace(PEFT, compiled=False)),
    (27, 4, 0, PEFT),
    (49, 8, 0, PEFT),
    (36, 8, 0, replace(PEFT, dropout=False)),
    (7.2, 4, 24, PEFT),
    (9.2, 8, 24, PEFT),
    (6.2, 4, 24, replace(PEFT, compiled=False, quantised=True)),  # this and the next two with adapters in bf16
    (23.4, 4, 0, replace(PEFT, compiled=False, quantised=True, dropout=False)),
    (24.7, 4, 0, replace(PEFT, compiled=False, dropout=False)),
]
OURS = Training(rank=128, dropout=True)
FUSED = [  # the same in this engine, several micro-batches a step (benchmarks/train_speed.py)
    (76.0, 16, 0, OURS),
    (73.0, 16, 0, replace(OURS, dropout=False)),
    (73.9, 16, 0, replace(OURS, quantised=True)),
    (6.5, 4, 24, replace(OURS, quantised=True)),
]
SPEEDS = [
    (22.6, 16, 0, OURS),
    (23.5, 16, 0, replace(OURS, dropout=False)),
    (22.2, 16, 0, replace(OURS, quantised=True)),
    (15.0, 4, 24, replace(OURS, quantised=True)),
]
"""Samples per second of the same runs."""


def shape_of(config: Any) -> Shape:
    return Shape.of(config.to_dict())


@pytest.fixture(scope="module")
def two_billion() -> Shape:
    return shape_of(native("internvl2-2b"))


@pytest.mark.parametrize("name", published_names())
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    config = native(name)
    assert shape_of(config).parameters == count(expected_tensors(config))


SMALL: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT: dict[str, Any] = {**SMALL, "hidden_size": 64, "vocab_size": 160, "num_key_value_heads": 2, "pad_token_id": 0}
PICTURE: dict[str, Any] = {"image_size": 28, "patch_size": 7}
VISIONS = [
    CLIPVisionConfig(**SMALL, **PICTURE),
    SiglipVisionConfig(**SMALL, **PICTURE),
    SiglipVisionConfig(**SMALL, **PICTURE, vision_use_head=False),
    Dinov2Config(**SMALL, **PICTURE),
    Dinov2Config(**SMALL, **PICTURE, use_swiglu_ffn=True, use_mask_token=False),
]
TEXTS = [
    LlamaConfig(**TEXT),
    LlamaConfig(**TEXT, attention_bias=True, mlp_bias=True, head_dim=24),
    Qwen3Config(**TEXT, head_dim=24),
    Phi3Config(**TEXT),
]


def llava(vision: Any = VISIONS[0], text: Any = TEXTS[0], tied: bool = False) -> LlavaConfig:
    text.tie_word_embeddings = tied
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=1, tie_word_embeddings=tied)


def internvl(**changed: Any) -> InternVLConfig:
    vision = InternVLVisionConfig(**{**SMALL, "image_size": [28, 28], "patch_size": [7, 7], **changed})
    return InternVLConfig(
        vision_config=vision, text_config=TEXTS[0], image_token_id=1, image_seq_length=4, tie_word_embeddings=False
    )


@pytest.mark.parametrize(
    "config",
    [
        *(llava(vision=vision) for vision in VISIONS),
        *(llava(text=text) for text in TEXTS),
        internvl(),
        internvl(use_qk_norm=True, attention_bias=True, norm_type="rms_norm", use_mean_pooling=False),
    ],
    ids=lambda config: f"{config.vision_config.model_type}-{config.text_config.model_type}",
)
def test_parameters_of_other_towers_and_language_models(config: Any) -> None:
    assert shape_of(config).parameters == sum(value.numel() for value in skeleton(config).parameters())


def test_a_tied_output_matrix_counts_once() -> None:
    apart, tied = (shape_of(llava(tied=tied)) for tied in (False, True))
    assert apart.parameters - tied.parameters == 160 * 64


def test_an_unknown_network_is_refused() -> None:
    config = llava().to_dict()
    with pytest.raises(UserError, match="type 'mamba'"):
        Shape.of({**config, "text_config": {**config["text_config"], "model_type": "mamba"}})
    with pytest.raises(UserError, match="no 'vision_config'"):
        Shape.of({"model_type": "llava", "text_config": {}})


TRAININGS = {
    "projector": Training(),
    "lora": Training(rank=8, projector=False),
    "lora and projector": Training(rank=8),
    "full": Training(language=True),
    "full, no projector": Training(language=True, projector=False),
    "all": Training(language=True, vision=True),
    "adapters on the tower too": Training(rank=8, vision_rank=4),
}


def prepared(config: Any, training: Training) -> Any:
    """The model on the CPU, with what ``training`` says set to learn."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").requires_grad_(False)
    if training.rank:
        lora = {"rank": training.rank, "alpha": 8, "dropout": 0, "variant": "lora",
                "vision_rank": training.vision_rank, "vision_alpha": 8}  # fmt: skip
        get_peft_model(model, lora_config(lora, config))  # changes the model in place
    train_parts(model, [part for part in PARTS if getattr(training, part)])
    return model


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS.keys())
@pytest.mark.parametrize("config", [llava(), internvl()], ids=["llava", "internvl"])
def test_operations_are_those_that_torch_counts(config: Any, training: Training) -> None:
    model, shape = prepared(config, training), shape_of(config)
    learnt = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained_parameters(shape, training) == learnt
    records, length, tiles, supervised = 2, 96, 3, 40
    ids = torch.full((records, length), 5)
    side = PICTURE["image_size"]
    with FlopCounterMode(display=False) as counter:
        family = family_of_model(model)
        with torch.set_grad_enabled(training.vision_learns):
            features = family.features(model, torch.randn(tiles, 3, side, side))
        pictures = family.project(model, features)
        embedded = model.get_input_embeddings()(ids).view(-1, TEXT["hidden_size"])
        embedded = torch.cat([pictures, embedded[len(pictures) :]]).view(records, length, -1)
        hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        model.lm_head(hidden.view(-1, hidden.shape[-1])[:supervised]).sum().backward()
    expected = step_flops(shape, training, records * length, records * length**2, tiles, supervised)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_recomputation_is_counted_by_the_layer(two_billion: Shape) -> None:
    flops = [step_flops(two_billion, Training(rank=16), 2048, 1e6, 7, 128, layers) for layers in (0, 12, 24)]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])
    assert 1.2 < flops[2] / flops[0] < 1.4


def test_a_sample_of_the_measurements_has_the_known_operations(two_billion: Shape) -> None:
    tokens, tiles, supervised = RECORD
    flops = step_flops(two_billion, Training(rank=128), tokens, tokens * (tokens + 1) / 2, tiles, supervised)
    assert flops == pytest.approx(20.5e12, rel=0.02)


@pytest.mark.parametrize(("gib", "size", "checkpointed", "training"), MEASURED)
def test_memory_is_what_was_measured(
    two_billion: Shape, gib: float, size: int, checkpointed: int, training: Training
) -> None:
    estimate = memory(two_billion, training, Split(size, checkpointed), *RECORD, accumulating=False)
    assert estimate.total / GIB == pytest.approx(gib, rel=0.15)


@pytest.mark.parametrize(("gib", "size", "checkpointed", "training"), FUSED)
def test_memory_of_fused_adapters_is_what_was_measured(
    two_billion: Shape, gib: float, size: int, checkpointed: int, training: Training
) -> None:
    estimate = memory(two_billion, training, Split(size, checkpointed), *RECORD, accumulating=True)
    assert estimate.total / GIB == pytest.approx(gib, rel=0.06)


@pytest.mark.parametrize(("rate", "size", "checkpointed", "training"), SPEEDS)
def test_speed_is_what_was_measured(
    two_billion: Shape, rate: float, size: int, checkpointed: int, training: Training
) -> None:
    tokens, tiles, supervised = (size * part for part in RECORD)
    work = (tokens, size * RECORD[0] ** 2 / 2, tiles, supervised)
    assert size / seconds(two_billion, training, CARDS["H200"], *work, checkpointed) == pytest.approx(rate, rel=0.05)


def test_zero_shares_out_what_it_should(two_billion: Shape) -> None:
    def parts(stage: int, **changed: Any) -> Any:
        parallel = Parallel(gpus=4, zero_stage=stage, **changed)
        return memory(two_billion, Training(language=True), Split(1, 24), *RECORD, parallel)

    plain, one, two, three = (parts(stage) for stage in range(4))
    assert one.optimizer == two.optimizer == three.optimizer == plain.optimizer / 4
    assert two.gradients == three.gradients == plain.gradients / 4 == one.gradients / 4
    assert three.adapters == plain.adapters / 4 == two.adapters / 4
    assert parts(1, offload=True).optimizer == 0


def test_deepspeeds_configuration_says_what_is_shared() -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 1000}
    assert Parallel.of(4, {"zero_optimization": zero}) == Parallel(4, 2, True, 1000)
    assert Parallel.of(4, None) == Parallel(4)


def test_four_bits_hold_the_language_model_alone(two_billion: Shape) -> None:
    plain, packed = (
        memory(two_billion, Training(rank=8, quantised=quantised), Split(1, 0), *RECORD) for quantised in (False, True)
    )
    matrices = two_billion.language.blocks.weights
    assert plain.weights - packed.weights == pytest.approx(matrices * (2 - 0.516), rel=1e-3)


def options(**changed: Any) -> dict[str, Any]:
    common = {"epochs": 1, "batch_size": 4, "learning_rate": 1, "weight_decay": 0, "betas": [0, 0], "warmup_ratio": 0,
              "schedule": "constant", "max_grad_norm": 1, "precision": "auto", "seed": 0, "repeat": [1]}  # fmt: skip
    return {**common, **changed}


def test_a_stage_says_what_learns() -> None:
    assert Training.of(PretrainOptions(**options(train=["projector", "vision"], calibrate=0))) == Training(vision=True)
    lora = {"rank": 8, "alpha": 16, "dropout": 0.05, "variant": "dora", "vision_rank": 4, "vision_alpha": 4}
    finetune = options(projector_learning_rate=None, train_projector=False)
    qlora = FinetuneOptions(**finetune, method="qlora", lora=lora, quantization={"type": "nf4", "double": False})
    assert Training.of(qlora) == Training(
        projector=False, rank=8, vision_rank=4, dropout=True, dora=True, quantised=True, double=False, fused=False
    )
    full = FinetuneOptions(**finetune, method="full", train_vision=True)
    assert Training.of(full) == Training(projector=False, language=True, vision=True)


def gib_of(shape: Shape, training: Training, split: Split, **changed: Any) -> float:
    return memory(shape, training, split, *RECORD, **changed).total / GIB


@pytest.mark.parametrize("limit", [7, 9, 12, 16, 24, 40, 80, 140])
def test_the_split_fits_and_uses_the_memory(two_billion: Shape, limit: float) -> None:
    training, share = Training(rank=128, quantised=True), 32
    split = choose(two_billion, training, RECORD, limit * GIB, share)
    assert split.micro_batch_size <= share
    assert gib_of(two_billion, training, split) <= limit
    if split.checkpointed_layers:
        one_less = replace(split, checkpointed_layers=split.checkpointed_layers - 1)
        assert gib_of(two_billion, training, one_less) > limit


def test_more_memory_is_never_slower(two_billion: Shape) -> None:
    training, (tokens, tiles, supervised) = Training(rank=128), RECORD
    times = []
    for limit in (8, 12, 16, 24, 40, 80, 140):
        split = choose(two_billion, training, RECORD, limit * GIB, 32)
        size, layers = split.micro_batch_size, split.checkpointed_layers
        each = seconds(two_billion, training, card_named(None), size * tokens, size * tokens**2 / 2, size * tiles,
                       size * supervised, layers)  # fmt: skip
        times.append(each * -(-32 // size))
    assert times == sorted(times, reverse=True)


def test_the_split_is_never_above_the_share_of_the_batch(two_billion: Shape) -> None:
    assert choose(two_billion, Training(), RECORD, 1000 * GIB, 3) == Split(3, 0)


def test_what_the_user_sets_is_kept_where_it_fits(two_billion: Shape) -> None:
    training, limit = Training(rank=128, dropout=True), 30 * GIB
    wanted = choose(two_billion, training, RECORD, limit, 32, micro_batch_size=4)
    assert wanted == Split(4, 0)
    assert choose(two_billion, training, RECORD, limit, 32, micro_batch_size=4, checkpointing=True) == Split(4, 24)
    assert choose(two_billion, training, RECORD, limit, 32, micro_batch_size=32, checkpointing=False) == Split(4, 0)
    assert choose(two_billion, training, RECORD, limit, 32, micro_batch_size=32).micro_batch_size == 32


def refusal(shape: Shape, training: Training, limit: float, **changed: Any) -> tuple[str, str]:
    with pytest.raises(UserError) as raised:
        choose(shape, training, (3500, 13, 128), limit * GIB, 16, **changed)
    return raised.value.problem.reason, raised.value.problem.advice


def test_what_would_fit_is_computed(two_billion: Shape) -> None:
    reason, advice = refusal(two_billion, Training(language=True), 21.6)
    assert "3500 tokens (13 tiles) does not fit: 3" in reason
    assert "21.6 GiB are planned with" in reason
    assert "`method: lora`" in advice
    assert "`deepspeed: zero3` on 2 GPUs" in advice
    assert "or more (A6000, L40S, A100-40" in advice
    assert "max_tiles" not in advice  # weights alone are too much
    assert "offload" not in advice


def test_advice_that_would_not_help_is_left_out() -> None:
    shape = shape_of(native("internvl2-26b"))
    _, advice = refusal(shape, Training(rank=16), 21.6)
    assert "qlora" not in advice
    assert advice.startswith("`deepspeed: zero3` on 4 GPUs")
    assert advice.endswith("or a GPU of 60 GiB or more (A100-80, H100, H200)")
    assert "take a smaller model" in refusal(shape, Training(language=True), 5)[1]


def test_shorter_records_that_are_proposed_do_fit(two_billion: Shape) -> None:
    training = Training(rank=128, dropout=True, quantised=True)
    _, advice = refusal(two_billion, training, 4.9)
    tiles = int(advice.split("`max_tiles: ")[1].split("`")[0])
    length = int(advice.split("`max_length: ")[1].split("`")[0])
    fewer = (3500 - (13 - tiles - 1) * 256, tiles + 1, 128)
    assert choose(two_billion, training, fewer, 4.9 * GIB, 16).micro_batch_size == 1
    more = (fewer[0] + 256, fewer[1] + 1, 128)
    with pytest.raises(UserError):
        choose(two_billion, training, more, 4.9 * GIB, 16)
    assert fewer[0] - 256 < length < more[0] + 256


def test_too_little_recomputation_is_the_first_thing_to_change(two_billion: Shape) -> None:
    _, advice = refusal(two_billion, Training(rank=128), 12, checkpointing=False)
    assert advice.startswith("`gradient_checkpointing: auto` (")


def test_an_unknown_card_names_the_known() -> None:
    with pytest.raises(UserError, match="there is T4, "):
        card_named("Voodoo")
    assert card_named(None).name == "A100-80"
