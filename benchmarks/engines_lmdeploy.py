"""Greedy answers of a model directory in LMDeploy's PyTorch engine, in a process of its own.

    python benchmarks/engines_lmdeploy.py FOLDER CONVERSATIONS.json OUTPUT.json MAX_NEW_TOKENS

CONVERSATIONS.json: a list of conversations in OpenAI's form, pictures as {"type": "image", "path": ...}.
OUTPUT.json: for each the prompt's token ids, the answer's token ids and text; start-up and answering time in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image as Pictures


def main(folder: str, conversations: Path, output: Path, max_new_tokens: int) -> None:
    import lmdeploy
    from lmdeploy import ChatTemplateConfig, GenerationConfig, PytorchEngineConfig, pipeline

    started = time.monotonic()
    # Without its name, LMDeploy would take a template by what the path contains ("llava" and "v1", "vicuna", ...).
    template = ChatTemplateConfig("hf", model_path=folder)
    engine = PytorchEngineConfig(cache_max_entry_count=0.1)
    pipe = pipeline(folder, backend_config=engine, chat_template_config=template)
    ready = time.monotonic()
    asked = json.loads(conversations.read_text(encoding="utf-8"))
    processor = pipe.async_engine.prompt_processor
    prompts = [
        asyncio.run(processor.get_prompt_input(with_pictures(messages), do_preprocess=True))["input_ids"]
        for messages in asked
    ]
    asking = time.monotonic()
    answers = pipe(
        [with_pictures(messages) for messages in asked],
        gen_config=GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False),
    )
    result = {
        "version": lmdeploy.__version__,
        "chat_template": type(pipe.async_engine.chat_template).__name__,
        "dtype": str(pipe.async_engine.engine.model_config.dtype),
        "start_seconds": round(ready - started, 1),
        "answer_seconds": round(time.monotonic() - asking, 2),
        "answers": [
            {"prompt": list(prompt), "tokens": list(answer.token_ids), "text": answer.text}
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
    }
    output.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    pipe.close()


def with_pictures(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy of the conversation, its pictures opened."""
    return [
        {**message, "content": [_part(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else dict(message)
        for message in messages
    ]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_data", "image_data": {"data": Pictures.open(part["path"]).convert("RGB")}}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
