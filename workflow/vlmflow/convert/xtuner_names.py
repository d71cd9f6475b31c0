"""Which of a model's tensors XTuner's are, adapters included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmflow.convert import internlm2
from vlmflow.convert.internvl import internvl_rules
from vlmflow.weights.mapping import Operation, Rule, rename

LORA = (".lora_A.weight", ".lora_B.weight")
_LLAVA = {
    "vision_model.**": "vision_tower.**",
    "projector.model.0.**": "multi_modal_projector.linear_1.**",
    "projector.model.2.**": "multi_modal_projector.linear_2.**",
    "language_model.**": "language_model.**",
}


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to a low-rank adapter."""
    return ".lora_" in name


def xtuner_rules(config: Any) -> list[Rule]:
    """From the names that ``read_xtuner`` gives to those in the files of a model with the configuration ``config``.

    Adapters are named like the matrices that they change. InternLM2's names are known beside Llama's: a base that was
    made of InternLM2 is a Llama here.
    """
    text = config.text_config
    rules: list[Rule] = []
    if text.model_type == "llama":
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        prefix = "language_model."
        rules += internlm2.rules(prefix, prefix, text.num_attention_heads, text.num_key_value_heads, head_dim)
    if config.model_type == "internvl":
        rules += internvl_rules({"llm_config": {"architectures": ["LlamaForCausalLM"]}})  # which keeps the names
    else:
        rules += rename(_LLAVA)
    return [adapted for rule in rules for adapted in _of_adapter(rule)] + rules


def _of_adapter(rule: Rule) -> Sequence[Rule]:
    """The rules for the adapter of a matrix: W + scale * B A, whose rows are those of B.

    Where a matrix is split by rows, each part gets its rows of B and all of A, so that the update stays the same
    number by number.
    """
    if len(rule.sources) != 1 or not rule.sources[0].endswith(".weight"):
        return ()
    count = len(rule.targets)
    copies = Operation(lambda matrix: (matrix,) * count, lambda *matrices: matrices[:1])
    operations = (copies if count > 1 else rule.operation, rule.operation)
    return tuple(
        Rule(
            (rule.sources[0].removesuffix(".weight") + end,),
            tuple(target.removesuffix(".weight") + end for target in rule.targets),
            operation,
        )
        for end, operation in zip(LORA, operations, strict=True)
    )
