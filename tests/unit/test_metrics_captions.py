"""Longer text: against published values and against the libraries that define these metrics."""

from __future__ import annotations

import pytest
import sacrebleu
from pycocoevalcap.cider.cider import Cider

from vlmflow.evaluation.metrics import Item
from vlmflow.evaluation.metrics.bleu import bleu
from vlmflow.evaluation.metrics.chrf import chrf
from vlmflow.evaluation.metrics.cider import cider
from vlmflow.evaluation.metrics.rouge_l import rouge_l
from vlmflow.evaluation.metrics.text import words

# The example of sacrebleu's README.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ("The dog bit the man.", "The dog had bit the man."),
    ("It was not unexpected.", "No one was surprised."),
    ("The man bit him first.", "The man had bitten the dog."),
]
ITEMS = [Item(prediction, references) for prediction, references in zip(SYSTEM, REFERENCES, strict=True)]


def test_rouge_l_of_the_library() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    fox = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    assert rouge_l(fox[1], fox[0]) == pytest.approx(0.5882352941)  # of the library's README
    for reference, prediction in [fox, *((item.references[0], item.prediction) for item in ITEMS)]:
        assert rouge_l(prediction, reference) == pytest.approx(scorer.score(reference, prediction)["rougeL"].fmeasure)


def test_rouge_l_of_chinese_words() -> None:
    assert words("一只猫坐在桌子上") == ["一只", "猫", "坐在", "桌子", "上"]
    assert rouge_l("一只狗坐在桌子上", "一只猫坐在桌子上") == pytest.approx(0.8)
    assert rouge_l("？", "?") == 1.0
    assert rouge_l("", "猫") == rouge_l("猫", "") == rouge_l("?", "!") == 0.0


def test_bleu_and_chrf_are_sacrebleus() -> None:
    for item in ITEMS:
        references = list(item.references)
        direct = sacrebleu.sentence_bleu(item.prediction, references, use_effective_order=True)
        assert bleu(item) == pytest.approx(direct.score / 100)
        assert chrf(item) == pytest.approx(sacrebleu.sentence_chrf(item.prediction, references).score / 100)
    assert bleu(ITEMS[0]) == chrf(ITEMS[0]) == 1.0


def test_bleu_of_chinese_and_japanese_counts_characters() -> None:
    item = Item("一只狗坐在桌子上", ("一只猫坐在桌子上",))
    direct = sacrebleu.sentence_bleu(item.prediction, list(item.references), tokenize="zh", use_effective_order=True)
    assert bleu(item) == pytest.approx(direct.score / 100)
    assert 0.3 < bleu(item) < 0.8
    assert 0 < bleu(Item("これは犬です", ("これは猫です",))) < 1
    assert bleu(Item("ＡＢＣ", ("ABC",))) == 1.0


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_nothing_is_right_only_where_nothing_is_wanted(metric: object) -> None:
    assert [metric(Item(*pair)) for pair in (("", ("",)), ("", ("a",)), ("a", ("",)))] == [1, 0, 0]  # type: ignore[operator]


def test_cider_is_pycocoevalcaps() -> None:
    captions = [
        Item("a man riding a wave on a surfboard", ("a man rides a wave on a surfboard", "a surfer on a big wave")),
        Item("a cat", ("a cat sits on the table", "the cat is on a table")),
        Item("一只猫坐在桌子上", ("一只猫在桌子上", "桌子上坐着一只猫")),
        Item("", ("a dog",)),
    ]
    wanted = {place: [" ".join(words(text)) for text in item.references] for place, item in enumerate(captions)}
    given = {place: [" ".join(words(item.prediction))] for place, item in enumerate(captions)}
    mean, direct = Cider().compute_score(wanted, given)
    scores = cider(captions)
    assert scores == pytest.approx(list(direct))
    assert sum(scores) / len(scores) == pytest.approx(mean)
    assert scores[0] > scores[1] > scores[3] == 0


def test_cider_sees_all_references() -> None:
    same = Item("a red car", ("a red car",))
    assert cider([same, Item("dog", ("dogs",))])[0] == pytest.approx(7.5)  # 10 for each order of words it has, of four
    assert cider([same]) == [0.0]
    assert cider([same, same]) == [0.0, 0.0]
    assert cider([Item("a", ("",)), Item("", ("?",))]) == [0.0, 0.0]
