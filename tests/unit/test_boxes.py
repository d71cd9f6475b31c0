"""Boxes: numbers of three kinds into the text and back, what is refused, and the drawn sample."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmflow.data.boxes import (
    parse,
    pixels,
    substitute,
    thousandths,
    write_boxes,
    write_ref,
    wrong_box,
    wrong_markup,
    wrong_tags,
)
from vlmflow.data.records import Box

SIZE = (640, 480)
ROUND, CUT = "round-1000", "truncate-999"
PROFILE = settings(deadline=None, derandomize=True)


def kinds(found):
    return [reason.split(":")[0] for reason, _ in found]


def whole_boxes(largest=1000):
    """Boxes in whole numbers with an area."""
    side = st.tuples(st.integers(0, largest), st.integers(0, largest)).filter(lambda ends: ends[0] != ends[1])
    return st.tuples(side, side).map(lambda s: (min(s[0]), min(s[1]), max(s[0]), max(s[1])))


@st.composite
def typed_boxes(draw):
    """A right box of any kind, its picture's size, and the same corners as shares of the picture."""
    size = draw(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)))
    kind = draw(st.sampled_from(["real", "norm_1", "norm_1000"]))
    shares = [draw(st.floats(0, 1, allow_subnormal=False)) for _ in range(4)]
    wide, high = {"real": size, "norm_1": (1, 1), "norm_1000": (1000, 1000)}[kind]
    corners = tuple(share * side for share, side in zip(shares, (wide, high, wide, high), strict=True))
    return corners, kind, size


@pytest.mark.parametrize(
    ("corners", "kind", "scale", "expected"),
    [
        ((64, 48, 320, 480), "real", ROUND, (100, 100, 500, 1000)),
        ((0.1, 0.1, 0.5, 1), "norm_1", ROUND, (100, 100, 500, 1000)),
        ((100, 100, 500, 1000), "norm_1000", ROUND, (100, 100, 500, 1000)),
        ((100.4, 100.5, 500.6, 1000), "norm_1000", ROUND, (100, 101, 501, 1000)),
        ((64, 48, 320, 480), "real", CUT, (99, 99, 499, 999)),
        ((0.1, 0.1, 0.5, 1), "norm_1", CUT, (99, 99, 499, 999)),
        ((100, 100, 500, 1000), "norm_1000", CUT, (100, 100, 500, 1000)),
    ],
)
def test_thousandths(corners, kind, scale, expected):
    assert thousandths(corners, kind, SIZE, scale) == expected


def test_halves_are_rounded_away_from_zero_unlike_pythons_round():
    halves = (0.5, 1.5, 2.5, 3.5)
    assert thousandths(halves, "norm_1000", SIZE, ROUND) == (1, 2, 3, 4) != tuple(map(round, halves))
    assert thousandths((-0.5, -1.5, -2.4, 0), "norm_1000", SIZE, ROUND) == (-1, -2, -2, 0)
    assert thousandths((1, 3, 5, 7), "real", (2000, 2000), ROUND) == (1, 2, 3, 4)  # 0.5, 1.5, 2.5, 3.5


def test_just_under_a_half_is_rounded_down():
    assert thousandths((0.49999999999999994,) * 4, "norm_1000", SIZE, ROUND) == (0, 0, 0, 0)


def test_truncation_is_that_of_ms_swift_to_the_last_integer():
    """Multiplying first, as x * 999 / w, differs from int(x / w * 999) in dozens of these."""
    for width in range(1, 1500):
        for x in range(0, width + 1, 7):
            assert thousandths((x, 0, x, 0), "real", (width, 1), CUT)[0] == int(x / width * 999), (x, width)


@PROFILE
@given(typed_boxes())
def test_pixels_of_thousandths_are_within_half_a_thousandth(case):
    corners, kind, size = case
    there = pixels(corners, kind, size)
    back = pixels(thousandths(corners, kind, size, ROUND), "norm_1000", size)
    for index, (before, after) in enumerate(zip(there, back, strict=True)):
        assert abs(before - after) <= size[index % 2] * (0.0005 + 1e-12)


@PROFILE
@given(typed_boxes())
def test_truncated_numbers_are_in_range_and_never_above_the_rounded_ones(case):
    corners, kind, size = case
    cut, rounded = (thousandths(corners, kind, size, scale) for scale in (CUT, ROUND))
    assert all(0 <= low <= high <= 1000 for low, high in zip(cut, rounded, strict=True))
    assert all(high - low <= 2 for low, high in zip(cut, rounded, strict=True))


def test_pixels():
    assert pixels((1, 2, 3, 4), "real", SIZE) == (1, 2, 3, 4)
    assert pixels((0, 0.5, 0.25, 1), "norm_1", SIZE) == (0, 240, 160, 480)
    assert pixels((0, 500, 250, 1000), "norm_1000", SIZE) == (0, 240, 160, 480)


@pytest.mark.parametrize(
    ("kind", "corners", "reason", "advice"),
    [
        ("real", (0, 0, 640, 480), None, ""),
        ("real", (0, 0, 1, 1), None, ""),  # one pixel
        ("norm_1", (0, 0, 1, 1), None, ""),
        ("norm_1000", (0, 0, 1000, 1000), None, ""),
        ("real", (0, 0, 640.01, 480), "box out of range", "pixels are those of the upright picture"),
        ("real", (-1, 0, 10, 10), "box out of range", "correct the numbers"),
        ("real", (10, 10, 900, 900), "box out of range", "norm_1000"),
        ("real", (0.1, 0.1, 0.5, 0.5), "box of another type", "norm_1"),
        ("norm_1000", (0.1, 0.1, 0.5, 0.5), "box of another type", "norm_1"),
        ("norm_1", (10, 10, 200, 200), "box out of range", "bbox_type to real"),
        ("norm_1", (10, 10, 900, 900), "box out of range", "bbox_type to norm_1000"),
        ("norm_1000", (0, 0, 1001, 10), "box out of range", "correct the numbers"),
        ("real", (20, 10, 10, 20), "box without area", "x1 < x2"),
        ("real", (10, 20, 20, 10), "box without area", "x1 < x2"),
        ("real", (10, 10, 10, 20), "box without area", "x1 < x2"),
        ("real", (10, 10, 10.1, 20), "box without area", "leave it out"),
        ("real", (float("nan"), 0, 1, 1), "box out of range", "numbers"),
        ("norm_1", (0, 0, float("inf"), 1), "box out of range", "numbers"),
        ("real", (0, 0, 10**400, 1), "box out of range", "numbers"),
    ],
)
def test_wrong_box(kind, corners, reason, advice):
    found = list(wrong_box(Box(0, kind, (corners,)), [SIZE]))
    assert kinds(found) == ([] if reason is None else [reason])
    assert all(advice in told for _, told in found)


@pytest.mark.parametrize(("image", "right"), [(0, True), (1, True), (2, False), (-1, False)])
def test_a_box_is_about_a_picture_of_the_record(image, right):
    found = list(wrong_box(Box(image, "real", ((0, 0, 9, 9),)), [SIZE, (10, 10)]))
    assert kinds(found) == ([] if right else ["box without a picture"])


def test_every_box_of_a_thing_is_checked():
    box = Box(0, "real", ((5, 5, 1, 9), (0, 0, 9, 9), (0, 0, 9999, 9)))
    assert kinds(wrong_box(box, [SIZE])) == ["box without area", "box out of range"]


@PROFILE
@given(typed_boxes(), st.sampled_from([ROUND, CUT]))
def test_a_box_that_is_not_refused_is_right_in_the_text(case, scale):
    corners, kind, size = case
    if not list(wrong_box(Box(0, kind, (corners,)), [size], scale)):
        text = write_boxes([thousandths(corners, kind, size, scale)])
        assert list(wrong_markup(text)) == []


def test_markup_is_written_as_internvl_reads_it():
    assert write_ref("the man") == "<ref>the man</ref>"
    assert write_boxes([(1, 2, 3, 4)]) == "<box>[[1, 2, 3, 4]]</box>"
    assert write_boxes([(1, 2, 3, 4), (5, 6, 7, 8)]) == "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"


def test_names_and_boxes_are_counted_apart_over_all_texts():
    boxes = [Box(0, "real", ((0, 0, 320, 240),)), Box(1, "norm_1", ((0, 0, 0.5, 1), (0.5, 0, 1, 1)))]
    texts = ["Find <bbox>", "It is <ref-object>.", "And <ref-object>?", "<bbox>"]
    assert substitute(texts, ["a cat", "dogs"], boxes, [SIZE, (10, 10)], ROUND) == [
        "Find <box>[[0, 0, 500, 500]]</box>",
        "It is <ref>a cat</ref>.",
        "And <ref>dogs</ref>?",
        "<box>[[0, 0, 500, 1000], [500, 0, 1000, 1000]]</box>",
    ]


def test_the_example_of_the_ms_swift_tutorial():
    box = Box(0, "real", ((138, 136, 235, 359), (1, 2, 3, 4)), "guy in red")
    texts = substitute(["Find <ref-object>", "<bbox>"], ["guy in red"], [box], [SIZE], CUT)
    assert texts == ["Find <ref>guy in red</ref>", "<box>[[215, 283, 366, 747], [1, 4, 4, 8]]</box>"]


names = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@PROFILE
@given(st.lists(st.tuples(names, st.lists(whole_boxes(), min_size=1, max_size=4)), max_size=5))
def test_substituted_text_parses_to_the_thousandths(things):
    refs = [name for name, _ in things]
    boxes = [Box(0, "norm_1000", tuple(corners)) for _, corners in things]
    texts = substitute(["Where? " + "<ref-object><bbox>, " * len(things)], refs, boxes, [SIZE], ROUND)
    assert parse(texts[0]) == [(name, tuple(corners)) for name, corners in things]
    assert list(wrong_markup(texts[0])) == []


@pytest.mark.parametrize(
    ("texts", "names", "count", "expected"),
    [
        (["<ref-object>", "<bbox>"], 1, 1, []),
        (["<bbox>", "<bbox>"], 2, 2, []),  # the names belong to the boxes
        (["<ref-object>", "yes"], 1, 1, []),  # the boxes belong to the names
        (["<ref>a</ref>", "<box>[[1, 2, 3, 4]]</box>"], 1, 1, []),
        (["<ref-object><ref-object>", "<bbox>"], 1, 1, ["number of tags"]),
        (["<ref-object>", "<bbox><bbox>"], 1, 1, ["number of tags"]),
        (["<ref-object>", "<bbox>"], 2, 2, ["number of tags"]),
        (["Where?", "There."], 1, 1, ["number of tags"]),
        (["Where?", "<bbox>"], 0, 0, ["number of tags"]),
        (["<ref-object>", "<bbox>"], 0, 0, ["number of tags"] * 2),
    ],
)
def test_wrong_tags(texts, names, count, expected):
    boxes = [Box(0, "real", ((0, 0, 9, 9),))] * count
    assert kinds(wrong_tags(texts, ["a", "b"][:names], boxes)) == expected


@pytest.mark.parametrize("name", ["<image>", "<|im_end|>", "a</ref><box>[[0, 0, 9, 9]]</box>", "a\0", "\ud800", "a\nb"])
def test_a_name_cannot_bring_markup_into_the_text(name):
    box = Box(0, "real", ((0, 0, 9, 9),), name)
    found = list(wrong_tags(["<ref-object>", "<bbox>"], [name], [box]))
    assert kinds(found) == ["markup in a name"]
    assert found[0][0].isprintable()


def test_a_mentioned_thing_has_a_name():
    boxes = [Box(0, "real", ((0, 0, 9, 9),))]
    assert kinds(wrong_tags(["<ref-object>", "<bbox>"], [" "], boxes)) == ["empty name"]
    assert kinds(wrong_tags(["Where?", "<bbox>"], [""], boxes)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing <ref>here</ref>", []),
        ("<ref>a</ref><box>[[1, 2, 3, 4]]</box>", [("a", ((1, 2, 3, 4),))]),
        ("<ref>a</ref> <box> [[200, 200, 600, 600]] </box>", [("a", ((200, 200, 600, 600),))]),
        ("<box>[[1,2,3,4],[5,6,7,8]]</box>", [("", ((1, 2, 3, 4), (5, 6, 7, 8)))]),
        ("<ref>a</ref> is at <box>[[1, 2, 3, 4]]</box>", [("", ((1, 2, 3, 4),))]),
        (
            "<ref>a</ref><box>[[1, 2, 3, 4]]</box><box>[[5, 6, 7, 8]]</box>",
            [("a", ((1, 2, 3, 4),)), ("", ((5, 6, 7, 8),))],
        ),
    ],
)
def test_parse(text, expected):
    assert parse(text) == expected
    assert list(wrong_markup(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "<box>[[1, 2, 3, 4]]",
        "[[1, 2, 3, 4]]</box>",
        "</box>[[1, 2, 3, 4]]<box>",
        "<box><box>[[1, 2, 3, 4]]</box></box>",
        "<box>[[1, 2, 3, 4]]</box></box>",
        "<ref>a<box>[[1, 2, 3, 4]]</box>",
        "a</ref><box>[[1, 2, 3, 4]]</box>",
        "<box></box>",
        "<box>[]</box>",
        "<box>[1, 2, 3, 4]</box>",
        "<box>[[1, 2, 3]]</box>",
        "<box>[[1, 2, 3, 4, 5]]</box>",
        "<box>[[1, 2, 3.0, 4]]</box>",
        "<box>[[0, true, 3, 4]]</box>",
        '<box>[["1", "2", "3", "4"]]</box>',
        "<box>[[1, 2, 3, 4], null]</box>",
        "<box>[[1, 2, 3, 1001]]</box>",
        "<box>[[-1, 2, 3, 4]]</box>",
        "<box>[[3, 2, 1, 4]]</box>",
        "<box>[[1, 4, 3, 2]]</box>",
        "<box>[[1, 2, 1, 4]]</box>",
        "<box>[[1, 2, 3, NaN]]</box>",
        "<box>[[1, 2, 3, 1" + "0" * 5000 + "]]</box>",
        "<box>" + "[" * 100_000 + "</box>",
        "<box>(1,2),(3,4)</box>",
    ],
)
def test_wrong_markup(text):
    found = list(wrong_markup(text))
    assert kinds(found) == ["wrong box in the text"]
    assert len(found[0][0]) < 100


@pytest.mark.parametrize(
    "text",
    [
        "</box><box>" + " " * 1_000_000,
        "<box>" * 100_000 + "</box>" * 100_000,
        "<ref>" * 200_000 + "<box></box>",
        "<ref>a</ref>" + " " * 1_000_000 + "<box",
        "<ref>a</ref> " * 50_000 + "<box></box>",
    ],
    ids=["blanks", "boxes", "refs", "half a tag", "names"],
)
def test_hostile_markup_costs_no_more_than_its_length(text):
    list(wrong_markup(text))  # a backtracking expression would take minutes
