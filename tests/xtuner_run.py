"""Checkpoints as xtuner 0.1.23 writes them, and tiny base models that they belong to.

Names: LLaVAModel.state_dict (xtuner/model/llava.py), InternVL_V1_5.state_dict (xtuner/model/internvl.py),
get_peft_model_state_dict (xtuner/model/utils.py), ProjectorModel (xtuner/model/modules/projector/modeling_projector.py)
and LLaVAModel.to_xtuner_llava for folders. Adapters go to every linear layer that find_all_linear_names
(xtuner/model/utils.py) finds, InternLM2's output matrix among them: only ``lm_head`` and ``output_layer`` are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    Qwen2Config,
)

from vlmflow.files import write_manifest
from vlmflow.training.options import FinetuneOptions

State = dict[str, torch.Tensor]
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 32, 48, 4, 2, 8, 2, 64
VISION, VISION_FFN, VISION_LAYERS, PATCHES = 24, 40, 2, 4
RANK, ALPHA, VISION_RANK, VISION_ALPHA = 4, 6, 3, 5
GROUP = HEADS // KV_HEADS + 2
LORA = {"rank": RANK, "alpha": ALPHA, "dropout": 0.05, "vision_rank": VISION_RANK, "vision_alpha": VISION_ALPHA}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False}  # fmt: skip
TEXTS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "phi3": Phi3Config}
PICTURE = 7


def options(method: str = "lora", **lora: Any) -> FinetuneOptions:
    """What the configuration says about the training run."""
    return FinetuneOptions(
        epochs=1, batch_size=4, learning_rate=1e-4, weight_decay=0.0, betas=[0.9, 0.999], warmup_ratio=0.03,
        schedule="cosine", max_grad_norm=1.0, precision="bf16", seed=0, repeat=[1], projector_learning_rate=None,
        method=method, train_projector=True, lora=None if method == "full" else {**LORA, **lora},
        quantization={"type": "nf4", "double": True} if method == "qlora" else None,
    )  # fmt: skip


def make_base(folder: Path, family: str, text: str = "llama", **changed: Any) -> Path:
    """A tiny random model directory without tokenizer; returns its manifest."""
    torch.manual_seed(0)
    config = TEXTS[text](**{**TEXT, **changed})
    tied = config.tie_word_embeddings
    vision = {"hidden_size": VISION, "intermediate_size": VISION_FFN, "num_hidden_layers": VISION_LAYERS,
              "num_attention_heads": 2}  # fmt: skip
    if family == "llava":
        tower = CLIPVisionConfig(**vision, image_size=16, patch_size=8)
        network: Any = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=tower, text_config=config, image_token_index=PICTURE, image_seq_length=PATCHES,
                        tie_word_embeddings=tied)
        )  # fmt: skip
    else:
        tower = InternVLVisionConfig(**vision, image_size=[16, 16], patch_size=[4, 4])
        network = InternVLForConditionalGeneration(
            InternVLConfig(vision_config=tower, text_config=config, image_token_id=PICTURE, image_seq_length=PATCHES,
                           downsample_ratio=0.5, tie_word_embeddings=tied)
        )  # fmt: skip
    network.save_pretrained(folder)
    write_manifest(folder)
    return folder / "manifest.json"


def adapters(prefix: str, layers: int, sizes: dict[str, tuple[int, int]], rank: int, mark: str = ".default") -> State:
    """PEFT's tensors for matrices {name: (rows, columns)}; ``*`` in a name is the number of a layer."""
    state = {}
    for name, (rows, columns) in sizes.items():
        for layer in range(layers if "*" in name else 1):
            place = prefix + name.replace("*", str(layer))
            state[f"{place}.lora_A{mark}.weight"] = torch.randn(rank, columns)
            state[f"{place}.lora_B{mark}.weight"] = torch.randn(rows, rank)
    return state


BLOCK = "model.layers.*."
INTERNLM2 = {  # modeling_internlm2.py; find_all_linear_names leaves out lm_head and output_layer, not output
    f"{BLOCK}attention.wqkv": (KV_HEADS * GROUP * HEAD_DIM, HIDDEN), f"{BLOCK}attention.wo": (HIDDEN, HIDDEN),
    f"{BLOCK}feed_forward.w1": (FFN, HIDDEN), f"{BLOCK}feed_forward.w3": (FFN, HIDDEN),
    f"{BLOCK}feed_forward.w2": (HIDDEN, FFN), "output": (VOCABULARY, HIDDEN),
}  # fmt: skip
LLAMA = {
    f"{BLOCK}self_attn.q_proj": (HIDDEN, HIDDEN), f"{BLOCK}self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    f"{BLOCK}self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), f"{BLOCK}self_attn.o_proj": (HIDDEN, HIDDEN),
    f"{BLOCK}mlp.gate_proj": (FFN, HIDDEN), f"{BLOCK}mlp.up_proj": (FFN, HIDDEN),
    f"{BLOCK}mlp.down_proj": (HIDDEN, FFN),
}  # fmt: skip
PHI3 = {
    f"{BLOCK}self_attn.qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    f"{BLOCK}self_attn.o_proj": (HIDDEN, HIDDEN), f"{BLOCK}mlp.gate_up_proj": (2 * FFN, HIDDEN),
    f"{BLOCK}mlp.down_proj": (HIDDEN, FFN),
}  # fmt: skip
CLIP_BLOCK = "vision_model.encoder.layers.*."
CLIP = {
    **{f"{CLIP_BLOCK}self_attn.{name}": (VISION, VISION) for name in ("k_proj", "v_proj", "q_proj", "out_proj")},
    f"{CLIP_BLOCK}mlp.fc1": (VISION_FFN, VISION), f"{CLIP_BLOCK}mlp.fc2": (VISION, VISION_FFN),
}  # fmt: skip
VIT = {
    "encoder.layers.*.attn.qkv": (3 * VISION, VISION), "encoder.layers.*.attn.proj": (VISION, VISION),
    "encoder.layers.*.mlp.fc1": (VISION_FFN, VISION), "encoder.layers.*.mlp.fc2": (VISION, VISION_FFN),
}  # fmt: skip
WRAP = "base_model.model."


def linear(prefix: str, rows: int, columns: int) -> State:
    return {f"{prefix}.weight": torch.randn(rows, columns), f"{prefix}.bias": torch.randn(rows)}


def llava_state(language: dict[str, tuple[int, int]] = INTERNLM2, vision: bool = True) -> State:
    """LLaVAModel.state_dict: vision tower, language model, projector."""
    torch.manual_seed(1)
    state = adapters(f"visual_encoder.{WRAP}", VISION_LAYERS, CLIP, VISION_RANK) if vision else {}
    state |= adapters(f"llm.{WRAP}", LAYERS, language, RANK)
    return state | linear("projector.model.0", HIDDEN, VISION) | linear("projector.model.2", HIDDEN, HIDDEN)


def mlp1(prefix: str) -> State:
    norm = {f"{prefix}mlp1.0.weight": torch.randn(4 * VISION), f"{prefix}mlp1.0.bias": torch.randn(4 * VISION)}
    return norm | linear(f"{prefix}mlp1.1", HIDDEN, 4 * VISION) | linear(f"{prefix}mlp1.3", HIDDEN, HIDDEN)


def internvl_state(
    language: dict[str, tuple[int, int]] = INTERNLM2, *, model: str = "model.", wrap: str = WRAP, mark: str = ".default"
) -> State:
    """InternVL_V1_5.state_dict: vision tower, language model, projector."""
    torch.manual_seed(2)
    state = adapters(f"{model}vision_model.{wrap}", VISION_LAYERS, VIT, VISION_RANK, mark)
    return state | adapters(f"{model}language_model.{wrap}", LAYERS, language, RANK, mark) | mlp1(model)


def save(state: Any, path: Path, config: str = "model = dict()") -> Path:
    """As mmengine.runner.save_checkpoint does; ``config`` is what Config.pretty_text gives."""
    torch.save({"state_dict": state, "meta": {"epoch": 1, "cfg": config}}, path)
    return path


def write_folder(folder: Path, state: State, safe: bool) -> Path:
    """As LLaVAModel.to_xtuner_llava does, with save_pretrained of PEFT and of ProjectorModel."""
    settings = {"llm": (RANK, ALPHA), "visual_encoder": (VISION_RANK, VISION_ALPHA)}
    for part, (rank, alpha) in settings.items():
        own = {
            name.removeprefix(f"{part}.").replace(".default", ""): value
            for name, value in state.items()
            if name.startswith(f"{part}.")
        }
        place = folder / f"{part}_adapter"
        place.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.05, "bias": "none",
                  "target_modules": ["wqkv"], "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {},
                  "use_rslora": False, "inference_mode": True}  # fmt: skip
        (place / "adapter_config.json").write_text(json.dumps(config))
        (place / "README.md").write_text("---\n")
        write_tensors(own, place / ("adapter_model.safetensors" if safe else "adapter_model.bin"))
    projector = {
        name.removeprefix("projector."): value for name, value in state.items() if name.startswith("projector")
    }
    (folder / "projector").mkdir()
    (folder / "projector" / "config.json").write_text(json.dumps({"model_type": "projector", "depth": 2}))
    write_tensors(projector, folder / "projector" / ("model.safetensors" if safe else "pytorch_model.bin"))
    (folder / "xtuner_config.py").write_text("raise SystemExit\n")
    return folder


def write_tensors(state: State, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def full_state(prefix: str) -> State:
    """InternLM2 in full, as modeling_internlm2.py names it."""
    torch.manual_seed(4)
    state = {f"{prefix}model.tok_embeddings.weight": torch.randn(VOCABULARY, HIDDEN),
             f"{prefix}model.norm.weight": torch.randn(HIDDEN)}  # fmt: skip
    for layer in range(LAYERS):
        block = f"{prefix}model.layers.{layer}."
        state |= {f"{block}attention_norm.weight": torch.randn(HIDDEN), f"{block}ffn_norm.weight": torch.randn(HIDDEN)}
        state[f"{block}attention.rotary_emb.inv_freq"] = torch.randn(HEAD_DIM // 2)
    for name, (rows, columns) in INTERNLM2.items():
        for layer in range(LAYERS if "*" in name else 1):
            state[f"{prefix}{name.replace('*', str(layer))}.weight"] = torch.randn(rows, columns)
    return state
