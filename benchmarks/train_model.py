"""Complete model directories with random weights of a published shape, for the training benchmarks.

    python benchmarks/train_model.py --model internvl2-2b --output DIRECTORY [--tiny] [--layers 4]

``internvl2-2b`` is native InternVL: InternViT-300M for 448-pixel tiles and InternLM2-1.8B. ``llava`` is CLIP-L/336 and
the same language model. Both go through the stage that users build models with. Weights are bfloat16 with a new
model's scale, all cut from one block of noise. The tokenizer knows the 256 bytes and the control tokens; the vocabulary
tables have the published number of rows. --tiny keeps those rows, with few narrow layers and tiles of 56 pixels.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

from official_shapes import SIDE, language_shapes, official_shapes, shrink, shrink_language  # noqa: E402
from official_tokenizer import write_tokenizer  # noqa: E402
from vlmflow.files import write_json  # noqa: E402
from vlmflow.models.build import build_model  # noqa: E402
from vlmflow.models.published import published  # noqa: E402
from vlmflow.weights.kinds import Kind  # noqa: E402
from vlmflow.weights.mapping import SAME, Piece  # noqa: E402
from vlmflow.weights.stream import write_tensors  # noqa: E402

MODELS = ("internvl2-2b", "llava")
MAX_TILES = 6
_LLAVA = "llava-internlm2-chat-1.8b"
_NODE = {"template": "chatml", "max_tiles": None, "image_size": None, "feature_layer": -2, "dtype": "bfloat16",
         "seed": 0}  # fmt: skip
_STEP = 999_983  # tensors begin at different places of the block, so that no two layers are equal


class Noise:
    """Tensors of a new model by name: matrices N(0, 0.02), norms 1, biases 0, layer scales 0.1."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.kinds = {name: Kind(torch.bfloat16, shape) for name, shape in shapes.items()}
        block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02
        self._block = block.to(torch.bfloat16)
        self._start = 0

    def read(self, name: str) -> torch.Tensor:
        """The values of one tensor."""
        shape = self.kinds[name].shape
        if len(shape) < 2:
            value = 0.0 if name.endswith("bias") else 0.1 if name.endswith(("ls1", "ls2")) else 1.0
            return torch.full(shape, value, dtype=torch.bfloat16)
        size, self._start = math.prod(shape), (self._start + _STEP) % len(self._block)
        repeats = -(-(self._start + size) // len(self._block))
        return self._block.repeat(repeats)[self._start : self._start + size].view(shape)


def make_model(name: str, folder: Path, tiny: bool = False, layers: int | None = None) -> Path:
    """Write the model directory ``folder``/model unless it is there; returns its manifest.

    ``layers``: of language model and vision tower each, in place of the published number.
    """
    manifest = folder / "model" / "manifest.json"
    if not manifest.is_file():
        parts = folder / "parts"
        node = {"internvl2-2b": _internvl, "llava": _llava}[name](parts, tiny, layers)
        build_model({**_NODE, **node}, manifest)
        for weights in parts.rglob("*.safetensors"):
            weights.unlink()
    return manifest


def _internvl(folder: Path, tiny: bool, layers: int | None) -> dict[str, Any]:
    config = published("internvl2-2b").config
    config = shrink(config) if tiny else config
    for part in ("llm_config", "vision_config") if layers else ():
        config[part]["num_hidden_layers"] = layers
    _write(folder, config, config["llm_config"], official_shapes(config), pictures=True)
    return {"family": "internvl", "checkpoint": str(folder), "max_tiles": MAX_TILES}


def _llava(folder: Path, tiny: bool, layers: int | None) -> dict[str, Any]:
    parts = published(_LLAVA).config
    language, vision = parts["language"], parts["vision"]["vision_config"]
    if tiny:
        language = shrink_language(language)
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3,
                   "image_size": SIDE}  # fmt: skip
    if layers:
        language["num_hidden_layers"] = layers
        vision["num_hidden_layers"] = layers + 1  # the last is not read
    shapes = {name.removeprefix("language_model."): shape for name, shape in language_shapes(language).items()}
    _write(folder / "language", language, language, shapes, pictures=False)
    (folder / "vision").mkdir()
    write_json(folder / "vision" / "config.json", parts["vision"])
    _save(_tower_shapes(parts["vision"]), folder / "vision")
    return {"family": "llava", "language": str(folder / "language"), "vision": str(folder / "vision")}


def _tower_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name, as published, -> shape of every tensor of CLIP's vision half."""
    half = {"vision_config": config["vision_config"], "text_config": {**config["text_config"], "num_hidden_layers": 1}}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**half, projection_dim=config["projection_dim"]))
    tensors = {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if "vision_model." in name}
    return {"vision_model." + name.split("vision_model.")[-1]: shape for name, shape in tensors.items()}


def _write(
    folder: Path,
    config: dict[str, Any],
    language: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    pictures: bool,
) -> None:
    """Weights, tokenizer and config.json of a checkpoint as published; ``language`` is its language model's part."""
    folder.mkdir(parents=True)
    special = write_tokenizer(folder, language["model_type"], language["rope_theta"], pictures)
    language.update({name: value for name, value in special.items() if name != "vocab_size"})
    write_json(folder / "config.json", config)
    _save(shapes, folder)


def _save(shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    pieces = [Piece((name,), (name,), SAME.forward) for name in shapes]
    write_tensors(Noise(shapes), pieces, folder, shapes, max_shard_bytes=1 << 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    print(make_model(options.model, options.output, options.tiny, options.layers))


if __name__ == "__main__":
    main()
