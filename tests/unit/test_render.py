import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmflow.errors import UserError
from vlmflow.evaluation.compare import EvaluationRuns, Run, compare
from vlmflow.evaluation.scores import score_predictions
from vlmflow.report import figures, gallery
from vlmflow.report.render import embedded_json, read_log, render_report

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>'


def prediction(name: str, answer: str, picture: str, question: str = "<image>\nwhich?") -> dict[str, Any]:
    return {
        "id": name,
        "category": "kind <b>",
        "images": [picture],
        "question": question,
        "reference": "y",
        "prediction": answer,
    }


def write_run(directory: Path, lines: list[dict[str, Any]]) -> Path:
    scored, found = score_predictions(lines, ["exact_match"])
    directory.mkdir(parents=True)
    (directory / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    (directory / "scores.json").write_text(json.dumps({"checkpoint": directory.name, **found}))
    return directory


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The page of five records, with hostile text wherever data or a model can put some."""
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("L", (8, 8), 200).save(small)
    Image.effect_noise((900, 600), 80).convert("RGB").save(large)
    answers = {"before": "nnnny", "after": "yyyyn", "blind": "nnnnn"}
    runs = {
        label: write_run(
            tmp_path / "digits" / f"model-{label}",
            [
                prediction(
                    f"r{i}", EVIL if mark == "n" else mark, str(large if i else small), EVIL if i == 4 else "which?"
                )
                for i, mark in enumerate(marks)
            ],
        )
        for label, marks in answers.items()
    }
    evaluation = EvaluationRuns("digits", runs["before"], runs["after"], {"blind": runs["blind"]})
    compare({"name": "demo"}, [evaluation], tmp_path / "comparison.json")
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        "".join(json.dumps({"step": s, "loss": 3 / s, "lr": 1e-3, "samples_per_s": 9}) + "\n" for s in (1, 2, 3))
    )
    provenance = tmp_path / "finetune" / "digits" / "provenance.json"
    provenance.parent.mkdir(parents=True)
    provenance.write_text(json.dumps({"config": {"seed": 17, "note": EVIL}, "packages": {"torch": "2.13.0"}}))
    render_report(
        tmp_path / "comparison.json",
        [evaluation],
        tmp_path / "report" / "index.html",
        f"Digits {EVIL}",
        metrics_logs={f"pretrain {EVIL}": str(log)},
        provenance=[provenance],
        commands=[f"snakemake {EVIL}"],
    )
    return (tmp_path / "report" / "index.html").read_text()


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def test_hostile_text_stays_text(page: str) -> None:
    elements = Elements(page)
    scripts = [attributes.get("type") for tag, attributes in elements.tags if tag == "script"]
    assert scripts == ["application/json", "application/json", None]  # the page answers once it has the first pictures
    assert "img" not in [tag for tag, _ in elements.tags]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    samples = json.loads(elements.scripts[0])
    assert [sample["before"] for sample in samples if sample["id"] == "r0"] == [EVIL]
    assert EVIL not in page


def test_page_needs_nothing_else(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object") or attributes.get("rel") == "icon"
        assert not (attributes.get("src") or "")
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or "") or attributes.get("href") == "data:,"
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_headline_and_tables(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Base model 20.0%" in text
    assert "Fine-tuned 80.0%" in text
    assert "+60.0 points" in text
    assert "Fine-tuned, pictures shuffled" in text
    assert "kind &lt;b&gt;" in page
    assert "3 steps; loss 3 at first, 1 at the end" in text
    assert "finetune/digits" in text


def test_what_the_headline_says_is_said_once(tmp_path: Path) -> None:
    """The headline is the first evaluation that is not general, wherever it stands."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = {label: [prediction(f"r{i}", "y" if label == "after" else "n", str(tmp_path / "a.png")) for i in range(4)]
             for label in ("before", "after")}  # fmt: skip
    evaluations = [
        EvaluationRuns(name, *(write_run(tmp_path / name / label, found) for label, found in lines.items()))
        for name in ("general", "first", "second")
    ]
    evaluations[0].general = True
    compare({"name": "demo"}, evaluations, tmp_path / "comparison.json")
    render_report(tmp_path / "comparison.json", evaluations, tmp_path / "index.html", "Digits")
    page = (tmp_path / "index.html").read_text()
    said = {part.split("</bdi>")[0]: " got worse, " in part.split("<table")[0] for part in page.split("<h2><bdi>")[1:]}
    assert said == {"first": False, "second": True, "General ability: general": True}
    assert "<em>first</em>" in page.split('class="lede"')[1].split("</p>")[0]
    assert page.count("Links to files lead into the folder of results") == 1


def test_pictures_are_embedded_once_and_small(page: str) -> None:
    elements = Elements(page)
    samples, (small, large) = json.loads(elements.scripts[0]), json.loads(elements.scripts[1])
    assert [sample["outcome"] for sample in samples] == ["worse", "improved", "improved", "improved", "improved"]
    assert {sample["id"]: sample["pictures"] for sample in samples}["r3"] == samples[0]["pictures"]
    by_type = sorted([small, large])
    assert by_type[0][0].startswith("data:image/png;base64,")
    assert by_type[0][1:] == [8, 8]
    assert by_type[1][0].startswith("data:image/webp;base64,")
    assert by_type[1][1:] == [640, 427]


def test_many_pictures_are_smaller() -> None:
    sides = [gallery.picture_side(count) for count in (0, 1, 300, 1_000, 5_000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert (sides[0], sides[-1]) == (640, 96)
    assert 150 <= gallery.picture_side(5_000) <= 200


def test_embedded_json_cannot_end_its_element() -> None:
    text = embedded_json({"a": "</script><!--<script>", "b": "七"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--<script>", "b": "七"}


def run_of(marks: str) -> Run:
    lines = [prediction(f"r{i}", mark, "x.png") for i, mark in enumerate(marks)]
    scored, _ = score_predictions(lines, ["exact_match"])
    return Run(Path("x"), "model-x", ["exact_match"], {line["id"]: line for line in scored})


def test_of_many_samples_all_regressions_stay_and_the_rest_is_drawn_once_and_for_all() -> None:
    before, after = "y" * 100 + "n" * 900, "n" * 30 + "y" * 470 + "n" * 500
    pair = {"digits": (run_of(before), run_of(after))}
    shown, total = gallery.samples(pair, limit=200)
    assert (len(shown), total) == (200, 1000)
    assert gallery.counts(shown)["worse"] == 30
    assert sum(gallery.counts(shown).values()) == 200
    assert gallery.counts(shown)["still_wrong"] == pytest.approx(170 * 500 / 970, abs=25)
    assert gallery.samples(pair, limit=200)[0] == shown
    assert gallery.counts(gallery.samples(pair, limit=10)[0]) == {
        "worse": 30,
        "still_wrong": 0,
        "improved": 0,
        "right": 0,
    }
    assert len(gallery.samples(pair)[0]) == 1000


def test_long_and_broken_text() -> None:
    assert gallery.shown_text(" a \ud800b ") == "a ?b"
    cut = gallery.shown_text("x" * 20_000)
    assert cut.startswith("x" * 4_000 + " [... 16,000 more characters")
    assert len(cut) < 4_100


def sample_of(before: str, after: str, scores: tuple[float, float] = (0.0, 1.0), **line: Any) -> dict[str, Any]:
    """The one sample of a record with these answers."""
    metric = line.pop("metric", "exact_match")
    made = [
        {**prediction("r", answer, "x.png"), "sizes": [[640, 400]], **line, "scores": {metric: score}}
        for answer, score in zip((before, after), scores, strict=True)
    ]
    pair = tuple(Run(Path("x"), "model-x", [metric], {"r": one}) for one in made)
    (sample,), _ = gallery.samples({"digits": pair})
    return sample


def test_boxes_are_read_as_the_metrics_read_them() -> None:
    reference = "<ref>it</ref><box>[[250, 250, 500, 750]]</box>"
    sample = sample_of("[160, 100, 320, 300]", "[0.25, -0.1, 0.5, 0.75] and [5, 5, 1, 1]", reference=reference)
    assert sample["boxes"] == {
        "reference": [[250, 250, 500, 750]],
        "before": [[250, 250, 500, 750]],
        "after": [[250, 0, 500, 750]],
    }
    assert "boxes" not in sample_of("[1, 2", "no box", reference="none")
    two = sample_of("", "[[1, 2, 3, 4]]", images=["x.png", "y.png"], sizes=[[9, 9], [9, 9]])
    assert "boxes" not in two


def test_further_answers_and_cut_off_answers_are_told() -> None:
    sample = sample_of("a", "b", references=["y", "yes"], finish="length")
    assert (sample["also"], sample["cut"]) == (["yes"], ["before", "after"])
    assert {"also", "cut"}.isdisjoint(sample_of("a", "b"))


@pytest.mark.parametrize(
    ("metric", "scores", "outcome", "marks"),
    [
        ("exact_match", (0.0, 1.0), "improved", [("wrong", "0.0%"), ("right", "100.0%")]),
        ("wer", (0.0, 0.5), "worse", [("right", "0.0%"), ("partial", "50.0%")]),
        ("wer", (1.4, 1.4), "still_wrong", [("wrong", "140.0%"), ("wrong", "140.0%")]),
        ("cider", (0.0, 1.2), "improved", [("wrong", "0.0"), ("partial", "120.0")]),
        ("cider", (10.000000000000002, 10.000000000000002), "right", [("right", "1000.0")] * 2),
        ("of another tool", (0.2, 0.1), "worse", [("partial", "0.200"), ("partial", "0.100")]),
    ],
)
def test_direction_and_unit_of_a_metric(
    metric: str, scores: tuple[float, float], outcome: str, marks: list[tuple[str, str]]
) -> None:
    sample = sample_of("a", "b", scores, metric=metric)
    assert sample["outcome"] == outcome
    assert [sample["scores"][end] for end in ("before", "after")] == marks


def test_what_changed_most_comes_first() -> None:
    runs = [
        Run(Path("x"), "model-x", ["anls"], {
            f"r{i}": {**prediction(f"r{i}", "a", "x.png"), "scores": {"anls": score}} for i, score in enumerate(scores)
        })
        for scores in ((0.5, 0.9, 0.1, 0.2), (0.4, 0.1, 0.3, 0.9))
    ]  # fmt: skip
    shown, _ = gallery.samples({"digits": (runs[0], runs[1])})
    assert [sample["id"] for sample in shown] == ["r1", "r0", "r3", "r2"]


def test_many_long_texts_are_cut_shorter() -> None:
    lines = {f"r{i}": {**prediction(f"r{i}", "x" * 20_000, "x.png"), "scores": {"anls": 0.5}} for i in range(3_000)}
    run = Run(Path("x"), "model-x", ["anls"], lines)
    shown, _ = gallery.samples({"digits": (run, run)})
    texts = sum(len(sample[kind]) for sample in shown for kind in ("question", "reference", "before", "after"))
    assert texts < 9_000_000
    assert shown[0]["after"].endswith("more characters in the file]")


def test_a_scale_holds_what_exceeds_one_hundred() -> None:
    assert [figures.top_of(values) for values in ([0.2], [1.0], [1.3], [7.5])] == [1, 1, 2, 8]
    assert 'cx="75.0%"' in figures.interval_bar(1.5, (1.0, 1.8), "after", top=2.0)
    assert ">200</text>" in figures.scale(2.0)


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: cannot read the picture"):
        gallery.data_uri(tmp_path / "gone.png", 320)


def test_log_of_a_killed_and_resumed_training(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    killed = '{"step": 1, "loss": 4}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo\n'
    log.write_text(killed + '{"step": 2, "loss": 2}\n{"step": 3, "loss": NaN}\n')
    figure = figures.loss_figure("pretrain", read_log(log))
    assert figure["caption"] == "3 steps; loss 4 at first, 2 at the end; not finite and not drawn: 1."
    assert figures.loss_figure("pretrain", [])["svg"] is None
    assert "polyline" in figures.loss_figure("pretrain", [{"step": 5, "loss": 1.0}])["svg"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0.2, 4.1, [1, 2, 3, 4]), (1, 1600, [500, 1000, 1500]), (2, 2, [2]), (-1.5, 1.5, [-1, 0, 1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert figures.ticks(low, high) == pytest.approx(expected)


def test_smoothing_has_no_lag() -> None:
    line = [(float(x), 2.0 * x) for x in range(50)]
    assert [y for _, y in figures.smooth(line, 9)] == pytest.approx([y for _, y in line])
    noisy = [(float(x), float(x % 2)) for x in range(101)]
    assert all(0.4 < y < 0.6 for _, y in figures.smooth(noisy, 21)[10:-10])
