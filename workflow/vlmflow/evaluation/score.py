"""From answers to predictions.jsonl and scores.json."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import prediction_lines, read_answers, read_facts
from vlmflow.evaluation.judge import read_judged
from vlmflow.evaluation.questions import read_evaluated
from vlmflow.evaluation.scores import score_predictions
from vlmflow.files import read_manifest, write_json, write_text

logger = logging.getLogger(__name__)


def score_answers(
    config: dict[str, Any],
    checkpoint: str,
    answers: list[Path],
    data: Path,
    output: Path,
    judged: Path | None = None,
) -> None:
    """Put the parts of a run together; write scores.json (``output``) and, beside it, predictions.jsonl.

    ``config``: what was asked (split, limit, ...) and how it is scored (metrics, chinese); ``judged`` has verdicts of a
    judge. Raises :class:`UserError` for answers of another checkpoint, other settings or other data.
    """
    facts = read_facts(answers)
    told = {"checkpoint": facts["checkpoint"], "data": facts["inputs"].get("data"), **facts["generation"]}
    now = {"checkpoint": checkpoint, "data": read_manifest(data)["hash"], **config}
    for key, found in told.items():
        if found != now.get(key):
            reason = f"answers of {key} {found}, not of {now.get(key)}"
            raise UserError(reason, "delete it and run snakemake again", file=answers[0], field=key)
    records = read_evaluated(config, data)
    given = {"judge": read_judged(judged)} if judged else None
    lines = prediction_lines(records, read_answers(answers))
    scored, scores = score_predictions(lines, config["metrics"], config["chinese"], given)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in scored)
    write_text(output.with_name("predictions.jsonl"), text)
    cut = sum(line["finish"] == "length" for line in scored)
    if cut:
        logger.warning("%d of %d answers were cut off at max_new_tokens", cut, len(scored))
    write_json(
        output,
        {
            "evaluation": output.parent.parent.name,
            "checkpoint": checkpoint,
            **scores,
            "cut_off": cut,
            "generation": {key: value for key, value in config.items() if key != "metrics"},
            "engine": facts["engine"],
            "inputs": facts["inputs"],
            "seconds": facts["seconds"],
        },
    )
    logger.info("%s: %s, n = %d", checkpoint, scores["metrics"], scores["n"])
