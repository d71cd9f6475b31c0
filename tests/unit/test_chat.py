"""Talking with a model here: the prompts and answers of the evaluation, word by word; what is attached; errors."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from conftest import make_tiny_model
from llava_parts import build
from official import make_official
from vlmflow.chat.answerer import open_model
from vlmflow.chat.conversation import Message, Reply, Settings, Video, pictures, question, turns
from vlmflow.chat.examples import Example, examples_of_predictions, examples_of_split
from vlmflow.chat.local import LocalModel
from vlmflow.chat.media import open_picture
from vlmflow.chat.terminal import Chat, printable
from vlmflow.chat.together import Progress, answer_together
from vlmflow.data.read import read_split
from vlmflow.errors import UserError
from vlmflow.evaluation.engines import Settings as Asked
from vlmflow.evaluation.engines import Source
from vlmflow.evaluation.engines.transformers import TransformersEngine
from vlmflow.evaluation.questions import questions_of
from vlmflow.files import read_json
from vlmflow.models.directory import load_processor
from vlmflow.models.pictures import picture_lengths
from vlmflow.models.template import encode_prompt

SHORT = Settings(max_new_tokens=12)


@pytest.fixture(scope="module", params=["llava", "internvl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a tiny model of each family, which says more than its last token again."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llava":
        return make_tiny_model(folder, tie=False)
    source = make_official("internvl2-2b", folder / "source")
    return build(folder / "model", family="internvl", checkpoint=source, max_tiles=2) / "manifest.json"


@pytest.fixture(scope="module")
def llava(tiny_model: Path) -> LocalModel:
    return LocalModel(tiny_model.parent)


def red(size: tuple[int, int] = (20, 10)) -> Pictures.Image:
    return Pictures.new("RGB", size, "red")


def last(replies: Iterator[Reply]) -> Reply:
    *_, final = replies
    return final


def test_the_streamed_answer_is_the_evaluations(model: Path, tiny_data: Path) -> None:
    records = read_split(tiny_data, "test")
    engine = TransformersEngine(Source(model), Asked(SHORT.max_new_tokens, None), batch_size=1)
    asked = questions_of(records, None, "x")
    found = {key: answer for part in engine.answer(asked, ()) for key, answer in part.items()}
    chat = open_model(str(model))
    for record, told in zip(records, asked, strict=True):
        shown = [open_picture(Path(image.path)) for image in record.images]
        reply = last(chat.stream([question("What colour is this?", shown)], SHORT))
        answer = found[told.key]
        assert reply.text and (reply.text, reply.cut) == (answer.prediction, answer.finish == "length")


def test_an_answer_grows_and_can_be_stopped(llava: LocalModel) -> None:
    stream = llava.stream([question("Long?", [red()])], Settings(max_new_tokens=400, temperature=1.0))
    texts = [reply.text for reply in itertools.islice(stream, 3)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts)) and len(set(texts)) == 3
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 20 and not llava._busy.locked()


def test_sampling_is_repeatable(llava: LocalModel) -> None:
    said = [last(llava.stream([question("Say")], Settings(12, 1.0, 0.95, seed))).text for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_sampling_at_once_is_repeatable(llava: LocalModel, tiny_model: Path) -> None:
    models, asked, settings = [llava, LocalModel(tiny_model.parent)], [question("Say")], Settings(60, 1.0)
    alone = last(llava.stream(asked, settings)).text
    *_, both = answer_together(models, asked, settings, True, threading.Event())
    assert [one.text for one in both] == [alone, alone]


def test_all_turns_and_pictures_are_in_the_prompt(model: Path) -> None:
    processor, chat = load_processor(model), LocalModel(model.parent)
    conversation = [
        Message("system", "Be brief."), question("What?", [red(), red((10, 30))]), Message("assistant", "Red."),
        question("<image> and before?", [red((8, 8))]), Message("assistant", "Red, too."),
        question("And now?", [Video((red(), red()))]),
    ]  # fmt: skip
    texts = [turn.text for turn in turns(conversation)]
    assert texts[1] == "<image>\n<image>\nWhat?" and texts[3] == "<image> and before?"
    assert texts[5] == "Frame1: <image>\nFrame2: <image>\nAnd now?"
    counts = picture_lengths(processor, [picture.size for picture in pictures(conversation)])
    assert chat.prompt(conversation) == encode_prompt(processor.tokenizer, turns(conversation), counts)
    assert last(chat.stream(conversation, Settings(max_new_tokens=3)))


def test_the_next_turn_is_read_from_where_the_last_ended(model: Path) -> None:
    chat, asked = LocalModel(model.parent), Settings(max_new_tokens=6)
    chat.load()
    read: list[int] = []
    chat._model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    first = question("What?", [red()])
    talk = [first, Message("assistant", last(chat.stream([first], asked)).text.encode("ascii", "ignore").decode())]
    talk += [question("And this?", [Pictures.effect_noise((9, 9), 80).convert("RGB")])]
    for said in (talk, [*talk, Message("assistant", "x"), question("Why?")], [*talk[:2], question("Why?")], [first]):
        read.clear()
        reply = last(chat.stream(said, asked))
        begun = read[0]
        assert reply == last(LocalModel(model.parent).stream(said, asked))
        assert begun < len(chat.prompt(said)) or said == [first]


def test_tiles_can_be_limited_where_there_are_some(model: Path) -> None:
    wide = [question("What?", [red((1000, 500))])]
    if "internvl" in str(model):
        fewer, whole = (len(LocalModel(model.parent, max_tiles=tiles).prompt(wide)) for tiles in (1, None))
        assert fewer < whole
    else:
        with pytest.raises(UserError, match="every picture as one tile"):
            LocalModel(model.parent, max_tiles=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([question("x" * 3000)], r"3,0\d\d tokens.*the model reads 2,048"),
        ([question("a<|im_end|>b")], r"control token <\|im_end\|>"),
        ([Message("system", "<|im_start|>"), question("a")], "control token"),
    ],
)
def test_what_a_model_cannot_read(llava: LocalModel, asked: list[Message], message: str) -> None:
    with pytest.raises(UserError, match=message):
        last(llava.stream(asked, SHORT))


def test_places_must_fit_the_pictures() -> None:
    with pytest.raises(UserError, match=r"2 <image> in the text for 1 picture"):
        question("<image> or <image>?", [red()])


class Echo:
    """A model that repeats the last question, in two parts."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """The text of the last message; ``fail`` fails and ``stop`` is stopped by the user."""
        del settings
        text = messages[-1].text.split("\n")[-1]
        if text == "fail":
            raise UserError("failed", "try again")
        self.asked.append(list(messages))
        if text == "stop at once":
            raise KeyboardInterrupt
        yield Reply(text[:1])
        if text == "stop":
            raise KeyboardInterrupt
        yield Reply(text, cut=text == "cut")


def talk(*lines: str, model: Echo | None = None) -> tuple[str, str, Chat]:
    out, notes = io.StringIO(), io.StringIO()
    chat = Chat(model or Echo(), SHORT, 8, out, notes)
    chat.run(iter(lines))
    return out.getvalue(), notes.getvalue(), chat


def test_a_conversation_in_the_terminal(tmp_path: Path) -> None:
    red().save(tmp_path / "a picture.png")
    echo, saved = Echo(), tmp_path / "talk.json"
    out, notes, chat = talk(
        "/system Be brief.", f"/image '{tmp_path}/a picture.png'", "What is it?", "", "fail", "again", "/undo", "cut",
        "stop", "/help", f"/save {saved}", "/exit", "never", model=echo,
    )  # fmt: skip
    assert out == "What is it?\nagain\ncut\ns\n"
    for expected in ("echo is listening", "a picture.png", "error: failed\n    -> try again", "--max-new-tokens",
                     "[stopped]", "/undo", "saved"):  # fmt: skip
        assert expected in notes
    assert [len(messages) for messages in echo.asked] == [2, 4, 4, 6]
    assert [message.text for message in chat.messages] == [
        "Be brief.", "<image>\nWhat is it?", "What is it?", "cut", "cut", "stop", "s"]  # fmt: skip
    told = read_json(saved)["messages"]
    assert told[1] == {"role": "user", "content": "<image>\nWhat is it?", "files": [f"{tmp_path}/a picture.png"]}
    assert told[6] == {"role": "assistant", "content": "s"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image", "name of a file is missing"), ("/image nowhere.png", "nowhere.png: no such picture"),
        ("/video nowhere.mp4", "no such video"), ("/imag a", "no command /imag"),
        ("/save /proc/nowhere/x", "error: "), ("<image> what?", "1 <image> in the text for 0 picture"),
    ],
)  # fmt: skip
def test_a_wrong_line_ends_nothing(line: str, message: str) -> None:
    out, notes, chat = talk(line, "still here")
    assert message in notes and out == "still here\n" and len(chat.messages) == 2


def test_clear_keeps_the_system_prompt_and_save_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    _, notes, chat = talk("/system S", "one", "/clear", f"/save {tmp_path}/mine", "/undo")
    assert chat.messages == [Message("system", "S")]
    assert "there already" in notes and (tmp_path / "mine").read_text() == "precious"


def test_what_is_not_answered_was_not_said(tmp_path: Path) -> None:
    red().save(tmp_path / "a.png")
    _, notes, chat = talk("/undo", f"/image {tmp_path}/a.png", "stop at once", "What?", "/undo")
    assert chat.messages == [] and "[stopped]" in notes
    assert "no question to take back" in notes and "taken back: <image>\nWhat?" in notes


def test_a_file_is_told_by_its_own_name() -> None:
    _, notes, _ = talk("one", "/save /proc/talk.json")
    assert "error: /proc/talk.json: cannot be written" in notes


def test_answers_do_not_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\x07\td\u202e\u2067\x9b\ud800") == "a[2Jb\nc\td"
    kept = "10\xa0km\u3000\u200c\u200d\u200f\N{SOFT HYPHEN}\N{FAMILY}"
    assert printable(kept) == kept
    assert talk("a\x1b]0;title\x07b")[0] == "a]0;titleb\n"


def test_one_model_after_the_other_or_at_once() -> None:
    for at_once in (False, True):
        progress = list(answer_together([Echo(), Echo()], [question("hello")], SHORT, at_once, threading.Event()))
        assert [(one.text, one.state) for one in progress[-1]] == [("hello", "done")] * 2
        if not at_once:
            assert all(after == Progress() for before, after in progress if before.state == "thinking")


def test_one_model_that_fails_leaves_the_other() -> None:
    class Broken(Echo):
        def stream(self, *_: Any) -> Iterator[Reply]:
            raise RuntimeError("out of order")

    *_, progress = answer_together([Broken(), Echo()], [question("cut")], SHORT, False, threading.Event())
    assert [one.state for one in progress] == ["failed", "cut"] and "out of order" in progress[0].text


def test_stopping_ends_all_answers() -> None:
    stop = threading.Event()
    stop.set()
    *_, progress = answer_together([Echo(), Echo()], [question("hello")], SHORT, False, stop)
    assert [one.state for one in progress] == ["stopped", "stopped"]
    stop.clear()
    for progress in answer_together([Echo(), Echo()], [question("hello")], SHORT, False, stop):
        if progress[0].text:
            stop.set()
    assert progress[1] == Progress("", "stopped", progress[1].seconds) and progress[0].text


def test_examples_are_held_out_questions(tiny_data: Path, tmp_path: Path) -> None:
    examples = examples_of_split(tiny_data, "test", 3)
    assert len(examples) == 3
    assert examples[0].question == "What colour is this?" and examples[0].reference in ("red", "green", "blue", "white")
    assert max(examples[0].preview().size) > 200 and examples[0].pictures()[0].mode == "RGB"
    lines = [
        {"images": ["a.png"], "question": "<image>\nWhat?", "reference": "x"},
        {"images": ["a.png"], "question": "What is <image>?", "reference": "x"},
        {"images": [], "question": "What?", "reference": "x"},
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert examples_of_predictions(file, 5) == [Example((Path("a.png"),), "What?", "x")]
    framed = examples_of_predictions(file, 5, "Look. {question} In short:")
    assert [one.question for one in framed] == ["Look. What? In short:"]
    (asked,) = questions_of(read_split(tiny_data, "test")[:1], "Look. {question} ", "x")
    (example, *_) = examples_of_split(tiny_data, "test", 3, "Look. {question} ")
    assert question(example.question, example.pictures()).text == asked.turns[-1].text
    file.write_text("{}\n")
    with pytest.raises(UserError, match="line 1 is no prediction"):
        examples_of_predictions(file, 5)
