"""Batch evaluation: one checkpoint answers every question of one evaluation, greedily."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmflow.data.records import Record
from vlmflow.errors import UserError
from vlmflow.evaluation.scores import score_predictions
from vlmflow.files import read_json, read_manifest, write_json, write_text
from vlmflow.models.directory import device, load_model, load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import encode_prompt
from vlmflow.training.parts import load_parts
from vlmflow.training.samples import load_pictures, read_split

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    config: dict[str, Any],
    model: Path,
    checkpoint: str,
    data: Path,
    batch_size: int,
    output: Path,
    projector: Path | None = None,
) -> None:
    """Write predictions.jsonl and scores.json (``output``) of ``checkpoint``: ``model``, or ``projector`` over it.

    ``projector`` is the manifest of a pretraining, whatever parts it trained. ``config``: split, metrics, backend,
    max_new_tokens, limit. A checkpoint name that ends in ``+blind`` gets the pictures of other records.
    """
    records = read_split(data, config["split"])[: config["limit"]]
    if not records:
        raise UserError(f"the {config['split']} split is empty", "give `split` a larger share", file=data.parent)
    asked = shuffle_pictures(records) if checkpoint.endswith("+blind") else records
    started = time.monotonic()
    answers = Generator(model, projector).answer(asked, config["max_new_tokens"], batch_size)
    predictions, scores = score_predictions(
        [_line(record, answer) for record, answer in zip(records, answers, strict=True)], config["metrics"]
    )
    write_text(
        output.with_name("predictions.jsonl"), "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    )
    hashes = {name: read_manifest(path)["hash"] for name, path in (("model", model), ("projector", projector)) if path}
    facts = {
        "evaluation": output.parent.parent.name,
        "checkpoint": checkpoint,
        **scores,
        "generation": {key: config[key] for key in ("backend", "max_new_tokens", "split", "limit")},
        "inputs": {**hashes, "data": read_manifest(data)["hash"]},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output, facts)
    logger.info("%s: %s, n = %d, %.0f s", checkpoint, scores["metrics"], scores["n"], facts["seconds"])


class Generator:
    """A model directory that answers, by transformers."""

    def __init__(self, model: Path, projector: Path | None = None) -> None:
        self._processor = load_processor(model)
        stored = read_json(model.parent / "config.json")["dtype"]
        on_gpu = torch.cuda.is_available()  # a CPU without bf16 units is many times faster in float32
        self._model = load_model(model, dtype=getattr(torch, stored) if on_gpu else torch.float32).to(device())
        if projector is not None:
            load_parts(self._model, projector)
        self._pad = self._processor.tokenizer.pad_token_id

    def answer(self, records: Sequence[Record], max_new_tokens: int, batch_size: int) -> list[str]:
        """One answer per record, in order; records of like length share a batch."""
        prompts = [self._prompt(record) for record in records]
        order = sorted(range(len(records)), key=lambda index: (-len(prompts[index]), records[index].id))
        answers = [""] * len(records)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            texts = self._generate([prompts[i] for i in batch], [records[i] for i in batch], max_new_tokens)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            logger.info("%d/%d answers", min(start + batch_size, len(order)), len(order))
        return answers

    def _prompt(self, record: Record) -> list[int]:
        counts = picture_lengths(self._processor, [(image.width, image.height) for image in record.images])
        return encode_prompt(self._processor.tokenizer, record.turns[:-1], counts)

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], records: list[Record], max_new_tokens: int) -> Iterator[str]:
        length = max(map(len, prompts))
        padded = [[self._pad] * (length - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        pictures = [pixel_values(self._processor, load_pictures(record)) for record in records if record.images]
        if pictures:
            inputs["pixel_values"] = torch.cat(pictures).to(self._model.dtype)
        generated = self._model.generate(
            **{name: value.to(self._model.device) for name, value in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        answers = self._processor.tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        return (answer.strip() for answer in answers)


def shuffle_pictures(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Each record with the pictures of another one that has as many: what can be answered without looking."""
    shuffled = list(records)
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(len(record.images), []).append(index)
    for count, members in groups.items():
        if count and len(members) > 1:
            order = np.random.default_rng(seed).permutation(members).tolist()
            for index, other in zip(order, [*order[1:], order[0]], strict=True):
                record, giver = records[index], records[other]
                shuffled[index] = Record(record.id, giver.images, record.turns, record.category)
    return shuffled


def _line(record: Record, answer: str) -> dict[str, Any]:
    """One line of predictions.jsonl, not yet scored."""
    question, reference = record.turns[-2], record.turns[-1]
    return {
        "id": record.id,
        "category": record.category,
        "images": [image.path for image in record.images],
        "question": question.text,
        "reference": reference.text,
        "prediction": answer,
    }
