"""The table of metrics, and those that compare whole texts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow.errors import UserError
from vlmflow.evaluation.metrics import (
    METRICS,
    NAMES,
    Item,
    find_metric,
    is_computed,
    lower_is_better,
    perfect,
    unit,
    unknown_metrics,
)
from vlmflow.evaluation.metrics.matching import contains, exact_match
from vlmflow.evaluation.metrics.register import SCORERS
from vlmflow.evaluation.metrics.text import normalise, simplifier, tokens, valid, words

PACKAGE = Path(__file__).parents[2] / "workflow"
COMPUTED = [name for name in NAMES if is_computed(name)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Seven. ", "seven"),
        ("SEVEN！", "seven"),
        ("七。", "七"),
        ("七．", "七"),
        ("two\n  words ?!", "two words"),
        ("１２", "12"),
        ("Straße", "strasse"),
        ("C#", "c#"),
        ("50%", "50%"),
        ("3.5", "3.5"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match() -> None:
    assert exact_match("Seven.", "seven") == 1.0
    assert exact_match("It is seven", "seven") == 0.0
    assert exact_match("宫保鸡丁。", "宫保鸡丁") == 1.0
    assert exact_match("?", "") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("It is a seven.", "Seven", 1.0),
        ("It is seventeen.", "seven", 0.0),
        ("unseven", "seven", 0.0),
        ("这是宫保鸡丁吧", "宫保鸡丁", 1.0),
        ("答案是seven吧", "seven", 1.0),
        ("这是宫保肉丁", "宫保鸡丁", 0.0),
        ("about 3.5 metres", "3", 0.0),
        ("about 13.5 metres", "5", 0.0),
        ("there are 3.", "3", 1.0),
        ("3,000 people", "3", 0.0),
        ("13,000,500", "000", 0.0),
        ("3,000 people", "3,000", 1.0),
        ("options 1, 3", "3", 1.0),
        ("it is -3", "3", 0.0),
        ("是\u22123度", "3", 0.0),
        ("it is -3", "-3", 1.0),
        ("pages 2-3", "3", 1.0),
        ("version 3.5.2", "5", 0.0),
        ("C++ it is", "c++", 1.0),
        ("a (b) c", "(b)", 1.0),
        ("anything", "", 0.0),
        ("", "", 1.0),
        ("", "seven", 0.0),
    ],
)
def test_contains(prediction: str, reference: str, expected: float) -> None:
    assert contains(prediction, reference) == expected


def test_the_best_reference_counts() -> None:
    items = [Item("cat", ("dog", "Cat.")), Item("cat", ("dog", "cow"))]
    assert find_metric("exact_match").score(items) == [1.0, 0.0]
    assert find_metric("contains").score(items) == [1.0, 0.0]


@pytest.mark.parametrize("name", COMPUTED)
def test_a_metric_registers_under_its_name_and_tells_perfect_from_poor(name: str) -> None:
    metric = find_metric(name)
    right, other = "<box>[[100, 100, 300, 300]]</box> brown fox jumps", "<box>[[500, 500, 900, 900]]</box> a lazy dog"
    items = [Item(right, (right,) * 4), Item(other, (other,) * 4)]
    swapped = [Item(items[1 - place].prediction, item.references) for place, item in enumerate(items)]
    assert metric.score(items) == [pytest.approx(perfect(name))] * 2
    assert all(
        (score > perfect(name)) == lower_is_better(name) != (score < perfect(name)) for score in metric.score(swapped)
    )
    assert (metric.name, metric.better == "lower", metric.unit) == (name, lower_is_better(name), unit(name))


def test_directions_and_units() -> None:
    assert [name for name in NAMES if lower_is_better(name)] == ["cer", "wer"]
    assert [name for name in NAMES if unit(name) == ""] == ["cider"]
    assert [name for name in NAMES if not is_computed(name)] == ["judge"]


def test_a_misspelt_metric_is_named_with_the_right_one() -> None:
    with pytest.raises(UserError, match="did you mean 'exact_match'"):
        find_metric("exact-match")
    with pytest.raises(UserError, match="there is exact_match, contains"):
        lower_is_better("xyz")
    with pytest.raises(UserError, match="'judge' are made by another stage"):
        find_metric("judge")
    assert list(unknown_metrics(["anls", "judge", "blue"])) == ["no metric 'blue'; did you mean 'bleu'?"]
    assert list(unknown_metrics(METRICS)) == []


def test_names_cost_no_library() -> None:
    libraries = "numpy", "rapidfuzz", "sacrebleu", "jieba", "opencc", "pycocoevalcap"
    code = f"import sys, vlmflow.evaluation.metrics; sys.exit(bool(set({libraries!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE, check=False).returncode == 0


def test_words_of_chinese_and_other_scripts() -> None:
    assert words("It's A-ok, Größe １２_3!") == ["it", "s", "a", "ok", "größe", "12", "3"]
    assert words("一只猫坐在桌子上。two 猫") == ["一只", "猫", "坐在", "桌子", "上", "two", "猫"]
    assert words("これは猫") == ["こ", "れ", "は", "猫"]
    assert words("한국어 문장") == ["한국어", "문장"]
    assert words("?!") == []


def test_tokens_keep_punctuation_and_split_chinese() -> None:
    assert tokens("Hello, world 你好！ok") == ["Hello,", "world", "你", "好", "!ok"]


def test_the_documented_example_works() -> None:
    page = (PACKAGE.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    example, line, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(example, {})
        items = [Item("Yes, it is red.", ("yes",)), Item("No.", ("Yes, because",))]
        assert SCORERS["first_word"](items) == [1.0, 0.0]
    finally:
        SCORERS.pop("first_word", None)
    assert '"first_word": Listed("vlmflow.evaluation.metrics.first_word")' in line
    compile(test, "test_metrics_first_word.py", "exec")


def test_every_metric_is_documented() -> None:
    page = (PACKAGE.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page.partition("\n## ")[0]] == []


def test_simplified_and_valid_text() -> None:
    assert simplifier()("宮保雞丁") == "宫保鸡丁"
    assert valid("a\ud83d\ude00b\ud800") == "a😀b\ufffd"
