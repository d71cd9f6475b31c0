"""Greedy answers of a model directory in transformers, with the margins that differences are judged by."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as Pictures
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmflow.data.records import Record
from vlmflow.files import read_json
from vlmflow.models.directory import device, load_model, load_processor
from vlmflow.models.pictures import picture_lengths, pixel_values
from vlmflow.models.template import encode_prompt


class Answer(NamedTuple):
    """A greedy answer."""

    prompt: list[int]
    tokens: list[int]
    """Without the end token."""
    text: str
    margins: list[float]
    """Logit of each token less that of the next likely one, end token included."""


def stored_dtype(manifest: Path) -> str:
    """The number format that config.json names."""
    return str(read_json(manifest.parent / "config.json")["dtype"])


@torch.no_grad()
def answer_all(manifest: Path, records: list[Record], max_new_tokens: int, dtype: str) -> list[Answer]:
    """Answers to every record's last question by the project's own prompt and pictures, one after the other."""
    processor, model = load_processor(manifest), load_model(manifest, dtype=getattr(torch, dtype)).to(device())
    tokenizer, answers = processor.tokenizer, []
    for record in records:
        sizes = [(image.width, image.height) for image in record.images]
        prompt = encode_prompt(tokenizer, record.turns[:-1], picture_lengths(processor, sizes))
        inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt], device=model.device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if record.images:
            inputs["pixel_values"] = pixel_values(processor, _open(record)).to(model.device, model.dtype)
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        best = [step[0].float().topk(2).values for step in output.logits]
        tokens = without_end(output.sequences[0, len(prompt) :].tolist(), end_tokens(manifest))
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append(Answer(prompt, tokens, text, [(first - second).item() for first, second in best]))
    return answers


def end_tokens(manifest: Path) -> set[int]:
    """What ends an answer, by generation_config.json."""
    ends = read_json(manifest.with_name("generation_config.json"))["eos_token_id"]
    return set(ends) if isinstance(ends, list) else {ends}


def without_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first end token."""
    return list(itertools.takewhile(lambda token: token not in ends, tokens))


@torch.no_grad()
def plain_load(folder: Path, records: list[Record], max_new_tokens: int, dtype: str) -> dict[str, Any]:
    """What a user does, without this project: AutoModelForImageTextToText, AutoProcessor and its chat template.

    ``prompts``: token ids of every prompt. ``texts``: the answers.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not hasattr(processor, "image_processor"):
        raise TypeError(f"AutoProcessor gave a {type(processor).__name__}; InternVL's needs torchvision")
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype))
    model.to(device())
    prompts, texts = [], []
    for record in records:
        inputs = processor.apply_chat_template(
            _messages(record), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompts.append(inputs["input_ids"][0].tolist())
        output = model.generate(
            **inputs.to(model.device, dtype=model.dtype), max_new_tokens=max_new_tokens, do_sample=False
        )
        texts.append(processor.decode(output[0, len(prompts[-1]) :], skip_special_tokens=True))
    return {"prompts": prompts, "texts": texts, "pictures_by": type(processor.image_processor).__name__}


def _messages(record: Record) -> list[dict[str, Any]]:
    """The conversation in the form of transformers' processors: a list of parts, pictures on lines of their own."""
    pictures = iter(_open(record))
    messages = []
    for turn in record.turns[:-1]:
        parts: list[dict[str, Any]] = []
        for index, text in enumerate(turn.text.split("<image>\n")):
            if index:
                parts.append({"type": "image", "image": next(pictures)})
            if text:
                parts.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": parts or [{"type": "text", "text": ""}]})
    return messages


def _open(record: Record) -> list[Pictures.Image]:
    return [Pictures.open(image.path).convert("RGB") for image in record.images]
