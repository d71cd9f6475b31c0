"""What the methods of fine-tuning leave unused."""

UNUSED: dict[str, tuple[str, ...]] = {
    "qlora": (),
    "lora": ("quantization", "merge.base"),
    "full": ("quantization", "merge.base", "lora"),
}
"""Method -> keys of a finetune, each with all that is under it, that change nothing."""


def has_effect(key: str, method: str) -> bool:
    """Whether a key of a finetune, as in ``lora.rank``, changes anything with ``method``."""
    return not any(f"{key}.".startswith(f"{unused}.") for unused in UNUSED[method])
