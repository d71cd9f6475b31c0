"""Answers by transformers' ``generate``: on a CPU or one GPU, in batches of questions of like length."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.ask import Part, ask
from vlmflow.evaluation.engines import Settings, Source, decode, end_tokens, prompt_hash, prompt_ids
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json
from vlmflow.fingerprint import fingerprint
from vlmflow.models.adapted import load_adapted
from vlmflow.models.directory import device, load_model, load_processor
from vlmflow.models.pictures import pixel_values
from vlmflow.training.parts import load_parts

logger = logging.getLogger(__name__)
_AHEAD = 2  # batches whose pictures are made ready while one is answered
_Batch = list[tuple[Question, list[int]]]


def ask_transformers(
    config: dict[str, Any],
    model: Path,
    checkpoint: str,
    data: Path,
    shard: str,
    batch_size: int,
    cache: Path,
    output: Path,
    projector: Path | None = None,
    adapter: Path | None = None,
) -> None:
    """Write the answers of ``checkpoint`` to part ``shard`` of an evaluation (:class:`vlmflow.evaluation.ask.Part`).

    The checkpoint is ``model``, with a pretrained ``projector`` or a fine-tuned ``adapter`` over it (manifests).
    ``config``: split, limit, prompt, max_new_tokens, max_tiles.
    """
    source, settings = Source(model, projector, adapter), Settings(config["max_new_tokens"], config["max_tiles"])
    part, code = Part(config, checkpoint, data, shard, cache, output), fingerprint(Path(__file__))
    ask(part, source, transformers_facts(source), code, lambda: TransformersEngine(source, settings, batch_size))


class TransformersEngine:
    """A checkpoint in transformers; in float32 on a CPU, which is many times slower in the halves of it."""

    def __init__(self, source: Source, settings: Settings, batch_size: int) -> None:
        self._settings, self._batch_size = settings, batch_size
        self._processor = load_processor(source.model)
        self._model = _load(source)
        self._ends = end_tokens(source.model.parent)
        tokenizer = self._processor.tokenizer
        self._pad = next(iter(self._ends)) if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        """The answers of one batch at a time, the longest prompts first.

        Batches are those of all ``questions``, whatever is known: an evaluation that goes on after a kill asks in the
        same batches, so that its answers are equal to the last bit.
        """
        batches = [[pair for pair in batch if pair[0].key not in known] for batch in self._batches(questions)]
        waiting = [batch for batch in batches if batch]
        with ThreadPoolExecutor(1) as pool:
            ready = [pool.submit(self._pictures, batch) for batch in waiting[:_AHEAD]]
            for index, batch in enumerate(waiting):
                if index + _AHEAD < len(waiting):
                    ready.append(pool.submit(self._pictures, waiting[index + _AHEAD]))
                pictures, ready[index] = ready[index].result(), None  # type: ignore[call-overload]
                yield self._answered(batch, pictures)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _batches(self, questions: Sequence[Question]) -> list[_Batch]:
        unique = {question.key: question for question in questions}
        pairs = [
            (question, prompt_ids(self._processor, question, self._settings.max_tiles)) for question in unique.values()
        ]
        pairs.sort(key=lambda pair: (-len(pair[1]), pair[0].key))
        size = self._batch_size
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def _pictures(self, batch: _Batch) -> list[torch.Tensor | None]:
        """(tiles, 3, height, width) of each question of a batch, None without pictures."""
        return [
            pixel_values(self._processor, question.pictures(), self._settings.max_tiles) if question.sizes else None
            for question, _ in batch
        ]

    def _answered(self, batch: _Batch, pictures: list[torch.Tensor | None]) -> dict[str, Answer]:
        """The answers of a batch; one that does not fit into the GPU's memory is halved."""
        try:
            return self._generate(batch, pictures)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                reason = f"a prompt of {len(batch[0][1])} tokens does not fit into the GPU's memory"
                raise UserError(reason, "lower `max_tiles`, or use a larger GPU", record=batch[0][0].id) from None
        torch.cuda.empty_cache()
        half = len(batch) // 2
        logger.info("out of GPU memory with %d questions at once: asking %d", len(batch), half)
        first = self._answered(batch[:half], pictures[:half])
        return first | self._answered(batch[half:], pictures[half:])

    @torch.no_grad()
    def _generate(self, batch: _Batch, pictures: list[torch.Tensor | None]) -> dict[str, Answer]:
        length = max(len(prompt) for _, prompt in batch)
        padding = [length - len(prompt) for _, prompt in batch]
        inputs = {
            "input_ids": torch.tensor([[self._pad] * pad + ids for pad, (_, ids) in zip(padding, batch, strict=True)]),
            "attention_mask": torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding]),
        }
        shown = [tiles for tiles in pictures if tiles is not None]
        if shown:
            inputs["pixel_values"] = torch.cat(shown).to(self._model.dtype)
        generated = self._model.generate(
            **{name: value.to(self._model.device) for name, value in inputs.items()},
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            pad_token_id=self._pad,
        )
        tokens: list[list[int]] = generated[:, length:].tolist()
        tokenizer = self._processor.tokenizer
        return {
            question.key: decode(tokenizer, answer, self._ends, prompt_hash(prompt))
            for (question, prompt), answer in zip(batch, tokens, strict=True)
        }


def transformers_facts(source: Source) -> dict[str, Any]:
    """What answers depend on besides checkpoint and settings: number format, kind of device, versions."""
    on_gpu = torch.cuda.is_available()
    return {
        "backend": "transformers",
        "dtype": read_json(source.model.parent / "config.json")["dtype"] if on_gpu else "float32",
        "device": "cuda" if on_gpu else "cpu",
        "versions": {"transformers": transformers.__version__, "torch": str(torch.__version__)},
    }


def _load(source: Source) -> Any:
    if source.adapter is not None:
        return load_adapted(source.model, source.adapter)
    model = load_model(source.model, dtype=getattr(torch, transformers_facts(source)["dtype"]))
    if source.projector is not None:
        load_parts(model, source.projector)
    return model.to(device())
