"""Kept features of a frozen tower: the model's own, computed once, the same bytes however they came about."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from test_tokens import internvl
from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLVisionConfig, LlamaConfig

from conftest import make_tokens
from vlmflow.data.read import load_pictures
from vlmflow.data.records import Image, Record, Turn, write_records
from vlmflow.errors import UserError
from vlmflow.files import sha256_file, write_manifest
from vlmflow.models.directory import load_model, load_processor
from vlmflow.models.families import family_of_model
from vlmflow.training import feature_blocks, features
from vlmflow.training.feature_blocks import Blocks
from vlmflow.training.features import FeatureCache, tower_hash
from vlmflow.training.options import Execution
from vlmflow.training.samples import Samples

GB = 1e9
Open = Callable[..., FeatureCache | None]


def picture(folder: Path, name: str, size: tuple[int, int], seed: int) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Pictures.fromarray(pixels).save(folder / name)
    return Image(str(folder / name), *size, sha256_file(folder / name))


def asked(name: str, *images: Image) -> Record:
    return Record(name, images, (Turn("user", "<image>" * len(images) + "What?"), Turn("assistant", "This.")))


@pytest.fixture(scope="module")
def samples(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """12 different pictures: one record each, two with a second picture, three that ask of the first again, a text."""
    folder = tmp_path_factory.mktemp("kept") / "pictures"
    folder.mkdir()
    images = [picture(folder, f"{seed}.png", (10 + seed, 12), seed) for seed in range(12)]
    records = [asked(f"r{index}", image) for index, image in enumerate(images)]
    records += [asked(f"pair{index}", images[index], images[index + 1]) for index in range(2)]
    records += [asked(f"again{index}", images[0]) for index in range(3)] + [asked("text")]
    write_records(folder / "train.jsonl", records)
    write_manifest(folder)
    tokens = make_tokens(tiny_model, [folder / "manifest.json"], folder.parent / "tokens")
    return scheduled(tokens, load_processor(tiny_model), 2)


def scheduled(tokens: Path, processor: Any, epochs: float) -> Samples:
    return Samples(tokens, processor, {"epochs": epochs, "batch_size": 1, "seed": 0}, [1])


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model).requires_grad_(False)


@pytest.fixture
def opened(tiny_model: Path, model: Any, samples: Samples, tmp_path: Path, monkeypatch: Any) -> Open:
    """Opens the cache of the tiny run, five pictures to a block; what is given replaces the arguments."""
    monkeypatch.setattr(features, "_BLOCK_PICTURES", 5)
    usual = {"folder": tmp_path / "kept", "model": model, "processor": load_processor(tiny_model), "samples": samples,
             "execution": Execution(), "tower": "t"}  # fmt: skip
    return lambda **changed: FeatureCache.open(**{**usual, **changed})


class Drawn:
    """What the cache asks of samples, for ``records`` (record, tile limit or 0) that are drawn twice each."""

    def __init__(self, records: list[tuple[Record, int]]) -> None:
        self.records = [[record for record, _ in records]]
        self._limits = [limit for _, limit in records]

    def __len__(self) -> int:
        return 2 * len(self.records[0])

    def with_pictures(self) -> list[tuple[int, int]]:
        return [(0, index) for index in range(len(self.records[0]))]

    def tile_limit(self, dataset: int, index: int) -> int | None:
        assert dataset == 0
        return self._limits[index] or None


def blocks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def damage(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    path = sorted(folder.rglob("*.safetensors"))[0]
    path.write_bytes(change(path.read_bytes()))
    return path


def all_features(cache: FeatureCache, samples: Samples) -> list[torch.Tensor]:
    return [cache.load(samples.records[0][index], None) for _, index in samples.with_pictures()]


def test_kept_features_are_what_the_projector_reads(opened: Open, model: Any, samples: Samples) -> None:
    cache = opened()
    cache.fill(model)
    again = pickle.loads(pickle.dumps(cache))  # as a worker process has it
    family, processor = family_of_model(model), samples._processor
    for _, index in samples.with_pictures():
        record = samples.records[0][index]
        expected = family.features(model, family.pixel_values(processor, load_pictures(record), None))
        kept = cache.load(record, None)
        assert kept.shape == (len(record.images), 4, 32)
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(again.load(record, None), kept)


def test_every_picture_is_computed_once(opened: Open, model: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    forward = model.model.vision_tower.embeddings.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    state = torch.get_rng_state()
    opened().fill(model, workers=1)
    opened().fill(model)
    forward.remove()
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(seen) == 12
    assert len(blocks(tmp_path)) == 3


def test_half_precision_is_that_of_a_training_step(opened: Open, model: Any, samples: Samples) -> None:
    cache = opened(model=model.to(torch.bfloat16))
    cache.fill(model)
    record = samples.records[0][3]
    family = family_of_model(model)
    values = family.pixel_values(samples._processor, load_pictures(record), None)
    with torch.autocast("cpu", torch.bfloat16):
        expected = family.features(model, values)
    assert cache.load(record, None).dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(cache.load(record, None), expected)


def test_tiles_are_kept_by_their_limit(tmp_path: Path) -> None:
    vision = InternVLVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=448, patch_size=14
    )
    language = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = (
        AutoModelForImageTextToText.from_config(InternVLConfig(vision_config=vision, text_config=language))
        .requires_grad_(False)
        .eval()
    )
    wide, high = picture(tmp_path, "wide.png", (90, 30), 1), picture(tmp_path, "high.png", (30, 60), 2)
    records = [(asked("one", wide), 0), (asked("both", wide, high), 4), (asked("tight", wide), 1)]
    family, processor = family_of_model(model), internvl()
    cache = FeatureCache.open(tmp_path / "kept", model, processor, Drawn(records), Execution(), "t")
    assert cache is not None
    cache.fill(model)
    for (record, limit), tiles in zip(records, (4, 3 + 3, 1), strict=True):
        expected = family.features(model, family.pixel_values(processor, load_pictures(record), limit or None))
        kept = cache.load(record, limit or None)
        assert kept.shape == (tiles, 256, 32)
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)


def test_a_killed_fill_goes_on_to_the_same_bytes(
    opened: Open, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder=tmp_path / "whole").fill(model)
    write, written = Blocks.write, []

    def dying(self: Blocks, values: dict[str, torch.Tensor]) -> None:
        if written:
            (self.folder / ".torn.1.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(write(self, values))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Blocks, "write", dying)
        opened().fill(model)
    first = blocks(tmp_path / "kept")
    assert len(first) == 1
    monkeypatch.setattr(feature_blocks, "_STALE_SECONDS", -1)
    opened().fill(model)
    assert blocks(tmp_path / "kept") == blocks(tmp_path / "whole") != first
    assert not list((tmp_path / "kept").rglob("*.part"))


def test_processes_share_the_work_and_each_finds_all(
    opened: Open, model: Any, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder=tmp_path / "alone").fill(model)
    write, writers = Blocks.write, []

    def counted(self: Blocks, values: dict[str, torch.Tensor]) -> None:
        writers.append(os.environ["RANK"])
        write(self, values)

    def others() -> None:
        """What the second process has done by the time that both wait for each other."""
        monkeypatch.setenv("RANK", "1")
        second._compute(model, second._unfilled()[1::2], 0)

    monkeypatch.setattr(Blocks, "write", counted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first, second = opened(), opened()
    monkeypatch.setattr(features, "distributed", SimpleNamespace(is_initialized=lambda: True, barrier=others))
    first.fill(model)
    assert writers == ["0", "0", "1"]
    assert blocks(tmp_path / "kept") == blocks(tmp_path / "alone")
    assert len(all_features(first, samples)) == 17


def test_a_cut_off_block_is_computed_again(
    opened: Open, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened().fill(model)
    whole = blocks(tmp_path)
    path = damage(tmp_path, lambda content: content[:-1])
    with caplog.at_level(logging.INFO):
        opened().fill(model)
    assert f"{path}: damaged" in caplog.text
    assert "vision features of 5 pictures" in caplog.text
    assert blocks(tmp_path) == whole


def test_changed_bytes_are_never_trained_on(opened: Open, model: Any, samples: Samples, tmp_path: Path) -> None:
    opened().fill(model)
    whole, cache = blocks(tmp_path), opened()
    path = damage(tmp_path, lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match="damaged on disk"):
        all_features(cache, samples)
    assert not path.exists()
    opened().fill(model)
    assert blocks(tmp_path) == whole


def test_another_tower_or_number_format_shares_nothing(opened: Open, model: Any) -> None:
    opened().fill(model)
    assert not opened()._blocks.missing.any()
    assert opened(tower="other")._blocks.missing.all()
    assert opened(model=model.to(torch.bfloat16))._blocks.missing.all()


def test_other_runs_take_what_is_there(
    opened: Open, model: Any, samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = Drawn([(record, 0) for record in samples.records[0][:4]])
    opened(samples=some).fill(model)
    assert len(blocks(tmp_path)) == 1
    with caplog.at_level(logging.INFO):
        opened().fill(model)
    assert "vision features of 8 pictures" in caplog.text
    assert len(all_features(opened(), samples)) == 17


def test_where_it_does_not_pay_or_fit_there_is_none(
    opened: Open, samples: Samples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    once = scheduled(samples.records[0].path.parent / "manifest.json", samples._processor, 1)
    assert opened(samples=once) is None
    assert opened(samples=once, execution=Execution(feature_cache_gb=1)) is not None
    assert opened(execution=Execution(feature_cache_gb=0)) is None
    size = 12 * 4 * 32 * 4
    assert opened(execution=Execution(feature_cache_gb=size / GB)) is not None
    assert opened(execution=Execution(feature_cache_gb=(size - 1) / GB)) is None
    usage = namedtuple("usage", "total used free")
    for free, fits in ((10 * size, True), (10 * size - 10, False)):
        monkeypatch.setattr(features.shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        assert (opened() is not None) == fits
    with caplog.at_level(logging.INFO):
        opened()
    assert "12 pictures" in caplog.text
    assert "not kept" in caplog.text
    assert opened(execution=Execution(feature_cache_gb=1)) is not None
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage(0, 0, size - 1))
    assert opened(execution=Execution(feature_cache_gb=1)) is None


def test_all_there_is_used_whatever_the_room(
    opened: Open, model: Any, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().fill(model)
    monkeypatch.setattr(features, "_FREE_SHARE", 0)
    once = scheduled(samples.records[0].path.parent / "manifest.json", samples._processor, 1)
    assert opened(samples=once) is not None
    assert opened(samples=once, execution=Execution(feature_cache_gb=0)) is None


def test_a_tower_that_learns_has_none(opened: Open, model: Any) -> None:
    next(model.model.vision_tower.parameters()).requires_grad_(True)
    assert opened() is None


def test_a_full_disk_is_said(opened: Open, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        del self, content
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left(.|\n)*feature_cache_gb"):
        opened().fill(model)


def test_the_hash_of_a_tower(tmp_path: Path) -> None:
    def manifest(name: str, **files: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_text(content, encoding="utf-8")
        write_manifest(folder)
        return folder / "manifest.json"

    usual = {"config__json": json.dumps({}), "processor_config__json": "{}", "model__safetensors": "w", "t__txt": "t"}
    base = manifest("base", **usual)
    trained = manifest("trained", vision__safetensors="v", projector__safetensors="p")
    projector = manifest("projector", projector__safetensors="p")
    assert tower_hash(manifest("same", **{**usual, "t__txt": "u"})) == tower_hash(base) == tower_hash(base, [projector])
    others = [manifest(f"other{file}", **{**usual, file: "[]"}) for file in list(usual)[:3]]
    assert len({tower_hash(base), tower_hash(base, [trained]), *map(tower_hash, others)}) == 5
