"""The example of a training run: what the model sees, for people."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from conftest import make_tokens, tiny_tokenizer
from vlmflow.data.records import Record, Turn, write_records
from vlmflow.files import read_json, write_manifest
from vlmflow.models.directory import load_processor
from vlmflow.models.families.internvl import PictureProcessor
from vlmflow.models.pictures import picture_lengths
from vlmflow.models.template import IGNORED, chat_template, encode
from vlmflow.training.example import save_example, text_parts, tile_numbers
from vlmflow.training.samples import Samples
from vlmflow.training.sheet import draw_sheet, tile_pictures

SCHEDULE = {"epochs": 1, "batch_size": 4, "seed": 0}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def found(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> Path:
    """Folder with the example of the small data set."""
    processor = load_processor(tiny_model)
    save_example(processor, Samples(tiny_tokens, processor, SCHEDULE, [1]), tmp_path)
    return tmp_path


def test_the_text_is_decoded_and_the_supervised_part_marked(found: Path) -> None:
    example = read_json(found / "example.json")
    answer = example["supervised"]
    assert answer.removesuffix("<|im_end|>") in ("red", "green", "blue", "white")
    assert example["marked"] == (
        f"<|im_start|>user\n<image> x 4\nWhat colour is this?<|im_end|>\n<|im_start|>assistant\n⟦{answer}⟧\n"
    )
    assert example["text"] == example["marked"].replace("⟦", "").replace("⟧", "")
    assert [trained for _, trained in example["parts"]] == [False, True, False]
    assert example["supervised_tokens"] == len(answer.removesuffix("<|im_end|>")) + 1
    assert example["tokens"] > example["supervised_tokens"] + 4


def test_the_picture_is_the_one_of_the_record(found: Path) -> None:
    example = read_json(found / "example.json")
    with Image.open(found / "example.png") as sheet, Image.open(example["images"][0]) as picture:
        drawn = sheet.getpixel((sheet.width // 4, sheet.height // 2))
        assert drawn == (*picture.convert("RGB").getpixel((5, 5)), 255)


def test_equal_runs_have_equal_examples(tiny_model: Path, tiny_tokens: Path, tmp_path: Path, found: Path) -> None:
    processor = load_processor(tiny_model)
    (tmp_path / "again").mkdir()
    save_example(processor, Samples(tiny_tokens, processor, SCHEDULE, [1]), tmp_path / "again")
    for name in ("example.json", "example.png"):
        assert (tmp_path / "again" / name).read_bytes() == (found / name).read_bytes()


def test_without_pictures_there_is_the_text_alone(tiny_model: Path, tmp_path: Path) -> None:
    record = Record("t", (), (Turn("user", "Say \u4e00."), Turn("assistant", "\u4e00")))
    (tmp_path / "words").mkdir()
    for split in ("train", "validation", "test"):
        write_records(tmp_path / "words" / f"{split}.jsonl", [record] * 4)
    write_manifest(tmp_path / "words")
    tokens = make_tokens(tiny_model, [tmp_path / "words" / "manifest.json"], tmp_path / "tokens")
    processor = load_processor(tiny_model)
    save_example(processor, Samples(tokens, processor, SCHEDULE, [1]), tmp_path)
    assert read_json(tmp_path / "example.json")["supervised"] == "\u4e00<|im_end|>"
    assert not (tmp_path / "example.png").exists()


def test_a_sample_with_a_picture_is_preferred(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    record = Record("t", (), (Turn("user", "Say it."), Turn("assistant", "it")))
    write_records(tmp_path / "words" / "train.jsonl", [record] * 64)
    write_manifest(tmp_path / "words")
    tokens = make_tokens(tiny_model, [tmp_path / "words" / "manifest.json", tiny_data], tmp_path / "tokens")
    processor = load_processor(tiny_model)
    samples = Samples(tokens, processor, SCHEDULE, [1, 1])
    assert not samples.records[samples.place(0)[0]][samples.place(0)[1]].images
    save_example(processor, samples, tmp_path)
    assert read_json(tmp_path / "example.json")["images"]


def test_tiles_are_shown_though_their_features_are_cached(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    processor = load_processor(tiny_model)
    samples = Samples(tiny_tokens, processor, SCHEDULE, [1])
    cache = samples.cache = Mock()
    save_example(processor, samples, tmp_path)
    assert (tmp_path / "example.png").is_file()
    assert samples.cache is cache


def test_every_turn_that_is_trained_is_marked(tiny_model: Path) -> None:
    tokenizer = load_processor(tiny_model).tokenizer
    turns = [Turn("user", "a<image>b<image>"), Turn("assistant", "one"), Turn("user", "c"), Turn("assistant", "two")]
    encoded = encode(tokenizer, turns, [300, 1])
    parts = text_parts(tokenizer, encoded.input_ids, encoded.labels)
    assert [text for text, trained in parts if trained] == ["one<|im_end|>", "two<|im_end|>"]
    assert parts[0][0].startswith("<|im_start|>user\na<image> x 300b<image><|im_end|>")


def test_a_letter_of_several_tokens_is_cut_nowhere() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("七<|im_end|>", add_special_tokens=False)["input_ids"]
    assert text_parts(tokenizer, ids, ids) == [("七<|im_end|>", True)]
    assert text_parts(tokenizer, ids, [IGNORED] * len(ids)) == [("七<|im_end|>", False)]


def test_tiles_are_told_by_the_tokens_of_each_picture() -> None:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|im_end|>", extra_special_tokens=names
    )
    tokenizer.chat_template = chat_template("chatml", "internvl")
    processor = PictureProcessor(
        GotOcr2ImageProcessorPil(size={"height": 8, "width": 8}, max_patches=12), tokenizer, 3, tokenizer.chat_template
    )
    turns = [Turn("user", "<image><image>both?"), Turn("assistant", "yes")]
    encoded = encode(tokenizer, turns, picture_lengths(processor, [(16, 24), (8, 8)], 12))
    assert tile_numbers(processor, encoded.input_ids, 2) == [7, 1]
    parts = text_parts(tokenizer, encoded.input_ids, encoded.labels)
    assert "<img><IMG_CONTEXT> x 21</img><img><IMG_CONTEXT> x 3</img>both?" in parts[0][0]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_are_the_pixels_again() -> None:
    """Four tiles of 56 pixels and a thumbnail: what the network gets, less the normalisation, is the picture itself."""
    cut = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, image_mean=MEAN, image_std=STD)
    picture = noise(112, 112)
    values = cut([picture], crop_to_patches=True, min_patches=4, max_patches=4, return_tensors="pt")["pixel_values"]
    tiles = tile_pictures(cut, values)
    assert len(tiles) == 5
    assert np.array_equal(np.asarray(tiles[1]), np.asarray(picture.crop((56, 0, 112, 56))))
    assert np.array_equal(np.asarray(tiles[2]), np.asarray(picture.crop((0, 56, 56, 112))))


def test_the_sheet_shows_tiles_where_they_lie_in_the_picture() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250), (9, 9, 9)]
    tiles = [Image.new("RGB", (448, 448), colour) for colour in colours]
    sheet = draw_sheet([(1300, 900)], [7], tiles)
    assert sheet.size[0] <= 1200
    step = 196
    centres = [(column * step + 90, 24 + row * step + 90) for row in range(2) for column in range(3)]
    assert [sheet.getpixel(place)[:3] for place in centres] == colours[:6]
    assert sheet.getpixel((3 * step + 90, 24 + 90))[:3] == (9, 9, 9)
    assert sheet.getpixel((sheet.width - 1, sheet.height - 1))[3] == 0


def test_many_pictures_stay_one_sheet() -> None:
    tiles = [Image.new("RGB", (8, 8), (0, 0, number)) for number in range(200)]
    sheet = draw_sheet([(8, 8)] * 200, [1] * 200, tiles)
    assert sheet.width <= 1200
    assert sheet.height < 2000


def test_a_processor_that_does_not_normalise() -> None:
    cut = GotOcr2ImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False)
    picture = noise(8, 8)
    values = cut([picture], return_tensors="pt")["pixel_values"]
    assert np.array_equal(np.asarray(tile_pictures(cut, values)[0]), np.asarray(picture))
    assert values.max() <= torch.tensor(1.0)
