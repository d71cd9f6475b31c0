"""Whatever is in answer, references and question: a score within its range, soon."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmflow.evaluation.metrics import NAMES, is_computed, lower_is_better, perfect
from vlmflow.evaluation.scores import score_predictions

COMPUTED = [name for name in NAMES if is_computed(name)]
PIECES = ["A. ", "(B)", "cat", "猫 ", "雞", "[[1, 2, 300, 400]]", "[0.1,0.2,0.3,0.4]", "12%", "，", "\n", "\ud800"]
BOX = {"prediction": "", "references": ["[[1, 2, 300, 400]]"], "question": ""}  # without any, boxes are not scored
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=6).map("".join)
lines = st.fixed_dictionaries(
    {"prediction": texts, "references": st.lists(texts, min_size=1, max_size=12), "question": texts}
)


@pytest.mark.parametrize("name", COMPUTED)
@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(lines, min_size=1, max_size=4), chinese=st.sampled_from(["keep", "simplified"]))
def test_scores_are_within_their_range(name: str, drawn: list[dict[str, object]], chinese: str) -> None:
    predictions = [
        {"id": str(number), "reference": line["references"][0], "sizes": [[640, 480]], **line}  # type: ignore[index]
        for number, line in enumerate([*drawn, BOX])
    ]
    scored, found = score_predictions(predictions, [name], chinese)
    for line in scored:
        score = line["scores"][name]
        assert isinstance(score, float)
        assert 0 <= score <= (float("inf") if lower_is_better(name) else perfect(name) + 1e-9)
    assert found["metrics"][name] == pytest.approx(sum(line["scores"][name] for line in scored) / len(scored))


@pytest.mark.parametrize(
    "text",
    ["A. 猫 , " * 3_300, " " * 19_999 + "x", "[1,2,300,400]," * 1_400, "[" * 20_000, "<script>alert(1)</script>" * 800],
    ids=["options", "spaces", "boxes", "brackets", "html"],
)
def test_long_answers_are_no_trouble(text: str) -> None:
    started = time.monotonic()
    short = {"id": "a", "prediction": text, "reference": "cat", "question": text}
    long = {"id": "b", "prediction": text[::-1], "reference": text}
    score_predictions([short, long, {"id": "c", "reference": "", **BOX}], COMPUTED, "simplified")
    assert time.monotonic() - started < 20  # a table of all pairs of characters takes minutes
