"""A tiny model directory, a tiny data set: small random networks with the structure of the real ones."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image as Pictures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llava_parts import make_language, make_vision
from repository import TINY, copy_repository, snakemake
from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.files import sha256_file, write_manifest
from vlmflow.models.build import build_model
from vlmflow.tokens.count import count_tokens

ANSWERS = ("red", "green", "blue", "white")

# A shell that runs tests in its background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token per byte, with ChatML's special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


def make_tiny_model(folder: Path, seed: int = 0, tie: bool = True, dtype: str = "float32") -> Path:
    """Build a random LLaVA model directory below ``folder``; returns its manifest."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tie,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    language.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    language.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    vision.save_pretrained(folder / "vision")
    config = {"family": "llava", "language": str(folder / "language"), "vision": str(folder / "vision"),
              "template": "chatml", "image_size": None, "feature_layer": -2, "dtype": dtype, "seed": seed}  # fmt: skip
    build_model(config, folder / "model" / "manifest.json")
    return folder / "model" / "manifest.json"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a random LLaVA model directory."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def make_tiny_data(folder: Path, records: int = 24) -> Path:
    """A data set of one-coloured pictures below ``folder``; returns its manifest."""
    folder.mkdir(parents=True)
    made = []
    for index in range(records):
        answer = ANSWERS[index % len(ANSWERS)]
        path = folder / f"{index}.png"
        Pictures.new("RGB", (10 + index, 12), answer).save(path)
        image = Image(str(path), 10 + index, 12, sha256_file(path))
        turns = (Turn("user", "<image>\nWhat colour is this?"), Turn("assistant", answer))
        made.append(Record(f"r{index}", (image,), turns, category="colour"))
    for split, part in (("train", made[:-8]), ("validation", made[-8:-4]), ("test", made[-4:])):
        write_records(folder / f"{split}.jsonl", part)
    write_manifest(folder)
    return folder / "manifest.json"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a small data set."""
    return make_tiny_data(tmp_path_factory.mktemp("data") / "colours")


def make_tokens(model: Path, data: list[Path], folder: Path, **changed: Any) -> Path:
    """Count the tokens of data sets (manifests) for a model into ``folder``; returns the manifest."""
    config = {"max_length": 256, "too_long": "error", "max_dropped": 0, "datasets": [d.parent.name for d in data]}
    count_tokens({**config, **changed}, model, data, folder / "manifest.json")
    return folder / "manifest.json"


@pytest.fixture(scope="session")
def tiny_tokens(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of the counted tokens of the small data set for the random model."""
    return make_tokens(tiny_model, [tiny_data], tmp_path_factory.mktemp("tokens") / "colours")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random CLIP."""
    return make_vision(tmp_path_factory.mktemp("vision") / "clip", "clip")


@pytest.fixture(scope="session")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random Llama with a Vicuna-like tokenizer."""
    return make_language(tmp_path_factory.mktemp("language") / "vicuna", "llama")


@pytest.fixture
def training() -> Callable[..., dict[str, Any]]:
    """Training options with small defaults."""

    def options(**changed: Any) -> dict[str, Any]:
        defaults = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "weight_decay": 0.0, "betas": [0.9, 0.999],
                    "warmup_ratio": 0.0, "schedule": "constant", "max_grad_norm": 1.0,
                    "precision": "fp32", "seed": 0, "repeat": [1]}  # fmt: skip
        return {**defaults, **changed}

    return options


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the repository in which the tiny recipe has run, and what was printed."""
    folder = copy_repository(tmp_path_factory.mktemp("finished"))
    return folder, snakemake(*TINY, folder=folder)


OWN = """
datasets:
  mine: {path: data/mine, annotations: answers.csv, split: {validation: 0, test: 0.2}}
finetunes:
  mine: {init: projector, datasets: [mine], batch_size: 4}
evaluations:
  mine: {dataset: mine, max_new_tokens: 4}
experiments:
  mine: {finetune: mine, evaluations: [mine]}
"""


class OwnRun(NamedTuple):
    """An experiment on a user's own pictures beside the tiny recipe (mine.yaml): refused first, then finished."""

    folder: Path
    refused: str
    left: list[str]


@pytest.fixture(scope="session")
def own_run(finished: tuple[Path, str]) -> OwnRun:
    """20 pictures and a table of answers, first with one picture cut off and one missing, then mended and read-only."""
    folder = finished[0]
    mine, results = folder / "data" / "mine", folder / "results" / "tiny"
    mine.mkdir()
    for picture in sorted((results / "prepared" / "digits" / "images").glob("*.png"))[:20]:
        shutil.copy(picture, mine)
    rows = "".join(f"{picture.name},Is it a digit?,yes\n" for picture in sorted(mine.glob("*.png")))
    (mine / "answers.csv").write_text("image,question,answer\n" + rows)
    (folder / "mine.yaml").write_text(OWN)
    good = (mine / "0003.png").read_bytes()
    (mine / "0003.png").write_bytes(good[:60])
    (mine / "0005.png").unlink()
    refused = snakemake("mine", *TINY, "mine.yaml", folder=folder, check=False)
    left = sorted(path.relative_to(results).as_posix() for path in results.glob("*/mine/*"))
    (mine / "0003.png").write_bytes(good)
    shutil.copy(mine / "0004.png", mine / "0005.png")
    mine.chmod(0o555)
    try:
        snakemake("mine", *TINY, "mine.yaml", folder=folder)
    finally:
        mine.chmod(0o755)
    return OwnRun(folder, refused, left)
