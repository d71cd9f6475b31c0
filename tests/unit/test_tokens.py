"""The token budget: lengths are those of training, what is too long is treated by policy, nothing bad gets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from conftest import make_tokens, tiny_tokenizer
from vlmflow.data.records import Image, Record, RecordFile, Turn, Video, write_records
from vlmflow.errors import Problem, UserError
from vlmflow.files import read_json, read_manifest, write_manifest
from vlmflow.models.directory import load_processor
from vlmflow.models.families.internvl import PictureProcessor
from vlmflow.models.pictures import picture_lengths
from vlmflow.models.template import chat_template, encode
from vlmflow.tokens.budget import Budget, Measured
from vlmflow.training.samples import Samples, groups, shared_weights

PICTURE = Image("a.png", 800, 600, "0" * 64)
SCHEDULE = {"epochs": 1, "batch_size": 1, "seed": 0}


def talk(name: str, pairs: int, pictures: int = 1, **more: Any) -> Record:
    """A conversation whose first ``pictures`` questions hold a picture each."""
    turns = []
    for index in range(pairs):
        turns += [Turn("user", "<image>\n" * (index < pictures) + "What?"), Turn("assistant", f"Answer {index}.")]
    return Record(name, (PICTURE,) * pictures, tuple(turns), **more)


def dataset(folder: Path, *records: Record) -> Path:
    write_records(folder / "train.jsonl", records)
    write_manifest(folder)
    return folder / "manifest.json"


def internvl() -> PictureProcessor:
    """An InternVL processor around the tiny tokenizer."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|im_end|>", extra_special_tokens=names
    )
    tokenizer.chat_template = chat_template("chatml")
    pictures = GotOcr2ImageProcessorPil(
        min_patches=1, max_patches=12, size={"height": 448, "width": 448},
        image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    return PictureProcessor(pictures, tokenizer, 256, None)


def test_counts_are_those_of_encoding(tiny_model: Path, tmp_path: Path) -> None:
    records = [talk("a", 1), talk("b", 3, repeat=2.0), talk("c", 2, 2), talk("d", 1, 0)]
    tokens = make_tokens(tiny_model, [dataset(tmp_path / "d", *records)], tmp_path / "t")
    rows, processor = np.load(tokens.parent / "0.npy"), load_processor(tiny_model)
    for row, record in zip(rows, records, strict=True):
        encoded = encode(processor.tokenizer, record.turns, picture_lengths(processor, [(8, 6)] * len(record.images)))
        assert row["tokens"] == len(encoded.input_ids)
        assert row["supervised"] == sum(label != -100 for label in encoded.labels)
        assert (row["tiles"], row["tile_limit"], row["repeat"]) == (len(record.images), 0, record.repeat)
    assert list(RecordFile(tokens.parent / "0.jsonl")) == records
    facts = read_manifest(tokens)["datasets"][0]
    assert facts == {"name": "d", "hash": read_manifest(tmp_path / "d" / "manifest.json")["hash"], "records": 4}


def test_equal_inputs_give_equal_content(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    one, two = (make_tokens(tiny_model, [tiny_data], tmp_path / name) for name in ("one", "two"))
    assert read_manifest(one)["hash"] == read_manifest(two)["hash"]


def test_error_names_every_long_record_and_what_would_do(tiny_model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", talk("short", 1), talk("long", 9), talk("longer", 12))
    with pytest.raises(UserError, match="2 longer than max_length") as error:
        make_tokens(tiny_model, [data], tmp_path / "t", max_length=200)
    assert "record long:" in str(error.value)
    needed = int(str(error.value).split("`max_length: ")[1].split("`")[0])
    with pytest.raises(UserError, match="1 longer"):
        make_tokens(tiny_model, [data], tmp_path / "t", max_length=needed - 1)
    make_tokens(tiny_model, [data], tmp_path / "t", max_length=needed)


def test_drop_up_to_a_limit(tiny_model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", talk("long", 9), talk("short", 1))
    with pytest.raises(UserError, match="1 longer"):
        make_tokens(tiny_model, [data], tmp_path / "t", max_length=200, too_long="drop")
    tokens = make_tokens(tiny_model, [data], tmp_path / "t", max_length=200, too_long="drop", max_dropped=1)
    assert [record.id for record in RecordFile(tokens.parent / "0.jsonl")] == ["short"]
    assert read_json(tokens.parent / "report.json")["datasets"][0]["changed"][0]["what"] == "dropped"


def test_fewer_turns_takes_pictures_along_and_keeps_one_pair(tiny_model: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", talk("long", 9, 9))
    tokens = make_tokens(tiny_model, [data], tmp_path / "t", max_length=200, too_long="fewer-turns")
    (record,) = RecordFile(tokens.parent / "0.jsonl")
    assert 0 < len(record.images) == len(record.turns) // 2 < 9
    with pytest.raises(UserError, match="longer than max_length"):
        make_tokens(tiny_model, [data], tmp_path / "t", max_length=20, too_long="fewer-turns")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("r", (), (Turn("user", "a<|im_end|>"), Turn("assistant", "b"))), r"record r.*in the text: <\|im_end"),
        (Record("r", (), (Turn("user", "<video>"), Turn("assistant", "b")), videos=(Video("v", 1, 1.0, 1, 1, "0"),)),
         "takes no videos"),
        (Record("r", (), (Turn("user", "a"),)), "no token to learn"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused(tiny_model: Path, tmp_path: Path, record: Record, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_tokens(tiny_model, [dataset(tmp_path / "d", record)], tmp_path / "t", too_long="drop", max_dropped=9)


def test_a_template_of_another_tokenizer_is_refused(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    processor.tokenizer.chat_template = processor.tokenizer.chat_template.replace("<|im_end|>", "<|eot_id|>")
    with pytest.raises(UserError, match=r"does not fit the tokenizer: <\|eot_id\|> is 10 tokens"):
        Budget(processor, 100, "error")


def test_llava_has_no_tiles_to_save(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="fewer-tiles needs"):
        Budget(load_processor(tiny_model), 100, "fewer-tiles")


def test_internvl_pictures_count_by_tiles_with_the_text_around_them() -> None:
    processor = internvl()
    assert picture_lengths(processor, [(800, 600)]) == [3328]
    assert picture_lengths(processor, [(800, 600), (64, 64)], 12) == [1792, 256]
    (measured,) = Budget(processor, 4000, "error").measure([talk("a", 1)])
    assert isinstance(measured, Measured)
    encoded = encode(processor.tokenizer, measured.record.turns, [3328])
    text = processor.tokenizer.decode(encoded.input_ids)
    assert measured.tokens == len(encoded.input_ids)
    assert text.count("<img>") == text.count("</img>") == 1
    assert (measured.tiles, measured.picture_tokens) == (13, 3328)


def test_fewer_tiles_until_it_fits() -> None:
    budget = Budget(internvl(), 2000, "fewer-tiles")
    fitted = budget.fit(budget.measure([talk("a", 1)])[0])  # type: ignore[arg-type]
    assert isinstance(fitted, Measured)
    assert (fitted.tiles, fitted.tile_limit, fitted.picture_tokens) == (7, 11, 1792) or fitted.tokens <= 2000
    tight = Budget(internvl(), 200, "fewer-tiles")
    assert isinstance(tight.fit(tight.measure([talk("a", 1)])[0]), Problem)  # type: ignore[arg-type]


def test_records_with_a_repeat_of_their_own_make_groups() -> None:
    made = groups(0, np.array([1.0, 1.0, 2.5, 1.0]), 2)
    assert [(group.start, group.size, group.repeat) for group in made] == [(0, 2, 2), (2, 1, 5.0), (3, 1, 2)]
    assert shared_weights(made, [1.0]) == pytest.approx([4 / 11, 5 / 11, 2 / 11])


def test_a_record_that_was_counted_otherwise_is_named(tiny_model: Path, tiny_tokens: Path) -> None:
    samples = Samples(tiny_tokens, load_processor(tiny_model), SCHEDULE, [1])
    samples._rows[0]["tokens"][0] += 1
    with pytest.raises(UserError, match=r"but .* were counted"):
        samples.sample(0, 0)
