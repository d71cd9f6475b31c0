"""Answers by transformers' ``generate``: on a CPU or one GPU, in batches of questions of like length."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import GenerationConfig

from vlmflow.errors import UserError
from vlmflow.evaluation.answers import Answer
from vlmflow.evaluation.engines import Settings, Source, decode, end_tokens, prompt_hash
from vlmflow.evaluation.engines.inputs import Inputs, Made
from vlmflow.evaluation.questions import Question
from vlmflow.files import read_json
from vlmflow.models.adapted import load_adapted
from vlmflow.models.directory import device, load_model
from vlmflow.training.parts import check_base, load_parts

logger = logging.getLogger(__name__)
_AHEAD = 2  # batches that are made ready while one is answered


class TransformersEngine:
    """A checkpoint in transformers; in float32 on a CPU, which is many times slower in the halves of it."""

    def __init__(self, source: Source, settings: Settings, batch_size: int) -> None:
        self._batch_size = batch_size
        dtype = getattr(torch, transformers_facts(source)["dtype"])
        self._inputs = Inputs(source.model, settings, dtype)
        self._model = _load(source, dtype)
        self._ends = end_tokens(source.model.parent)
        self._tokenizer = self._inputs.tokenizer
        pad = self._tokenizer.pad_token_id
        self._pad = next(iter(self._ends)) if pad is None else pad
        core = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        # in the place of the directory's: a penalty on repetition, say, which LMDeploy would not know of
        core.generation_config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._ends),
            pad_token_id=self._pad,
        )

    def answer(self, questions: Sequence[Question], known: Collection[str]) -> Iterator[Mapping[str, Answer]]:
        """The answers of one batch at a time, the longest prompts first.

        Batches are those of all ``questions``, whatever is known: an evaluation that goes on after a kill asks in the
        same batches, so that its answers are equal to the last bit.
        """
        batches = [[question for question in batch if question.key not in known] for batch in self._batches(questions)]
        waiting = iter(batch for batch in batches if batch)
        ahead = deque((batch, self._submit(batch)) for batch in itertools.islice(waiting, _AHEAD))
        while ahead:
            batch, making = ahead.popleft()
            ahead.extend((later, self._submit(later)) for later in itertools.islice(waiting, 1))
            yield self._answered(batch, [each.result() for each in making])

    def close(self) -> None:
        """End the processes that make inputs."""
        self._inputs.close()

    def _batches(self, questions: Sequence[Question]) -> list[list[Question]]:
        unique = list({question.key: question for question in questions}.values())
        lengths = self._inputs.lengths(unique)
        order = sorted(range(len(unique)), key=lambda place: (-lengths[place], unique[place].key))
        return [[unique[place] for place in batch] for batch in in_batches(order, lengths, self._batch_size)]

    def _submit(self, batch: list[Question]) -> list[Future[Made]]:
        return [self._inputs.submit(question) for question in batch]

    def _answered(self, batch: list[Question], made: list[Made]) -> dict[str, Answer]:
        """The answers of a batch; one that does not fit into the GPU's memory is halved."""
        try:
            return self._generate(batch, made)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                reason = f"a prompt of {len(made[0].ids)} tokens does not fit into the GPU's memory"
                raise UserError(reason, "lower `max_tiles`, or use a larger GPU", record=batch[0].id) from None
        torch.cuda.empty_cache()
        half = len(batch) // 2
        logger.info("out of GPU memory with %d questions at once: asking %d", len(batch), half)
        first = self._answered(batch[:half], made[:half])
        return first | self._answered(batch[half:], made[half:])

    @torch.no_grad()
    def _generate(self, batch: list[Question], made: list[Made]) -> dict[str, Answer]:
        length = max(len(each.ids) for each in made)
        padding = [length - len(each.ids) for each in made]
        inputs = {
            "input_ids": torch.tensor([[self._pad] * pad + each.ids for pad, each in zip(padding, made, strict=True)]),
            "attention_mask": torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding]),
        }
        shown = [each.pixels for each in made if each.pixels is not None]
        if shown:
            inputs["pixel_values"] = torch.cat(shown).to(self._model.dtype)
        generated = self._model.generate(**{name: value.to(self._model.device) for name, value in inputs.items()})
        answers: list[list[int]] = generated[:, length:].tolist()
        return {
            question.key: decode(self._tokenizer, answer, self._ends, prompt_hash(each.ids))
            for question, each, answer in zip(batch, made, answers, strict=True)
        }


def in_batches(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Places in ``order`` (the longest first) in batches of at most ``size``.

    None is more than twice as long as another of its batch: one long question would fill all the others up to its
    length.
    """
    batches: list[list[int]] = []
    for place in order:
        if not batches or len(batches[-1]) == size or 2 * lengths[place] < lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(place)
    return batches


def transformers_facts(source: Source) -> dict[str, Any]:
    """What answers depend on besides checkpoint and settings: number format, kind of device, versions."""
    on_gpu = torch.cuda.is_available()
    return {
        "backend": "transformers",
        "dtype": read_json(source.model.parent / "config.json")["dtype"] if on_gpu else "float32",
        "device": "cuda" if on_gpu else "cpu",
        "versions": {"transformers": transformers.__version__, "torch": str(torch.__version__)},
    }


def _load(source: Source, dtype: torch.dtype) -> Any:
    if source.adapter is not None:
        return load_adapted(source.model, source.adapter)
    model = load_model(source.model, dtype=dtype)
    if source.projector is not None:
        check_base(source.model, source.projector)
        load_parts(model, source.projector)
    return model.to(device())
