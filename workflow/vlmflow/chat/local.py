"""A model directory that answers here, with transformers, word by word."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vlmflow.chat.conversation import PLACEHOLDER, Message, Reply, Settings, pictures, turns
from vlmflow.chat.memory import Read
from vlmflow.data.records import Turn
from vlmflow.data.report import shown
from vlmflow.errors import UserError
from vlmflow.files import MANIFEST, read_json
from vlmflow.models.directory import device, load_directory, load_model, load_processor
from vlmflow.models.pictures import cuts_into_tiles, picture_lengths, picture_tiles, pixel_values
from vlmflow.models.template import encode_prompt, picture_token, special_tokens
from vlmflow.models.template_spans import render

_LOADING = threading.Lock()  # transformers changes torch's defaults while it loads
_DRAWING = threading.Lock()  # all models draw from torch's one generator: a seed holds for one answer at a time
_MAKE_ONE = "let the workflow make a model directory of it: `checkpoint` in docs/models.md"


class LocalModel:
    """The model of ``folder``, perhaps under the ``adapter`` of a finetune; weights are read with the first question.

    On a GPU in the format they are stored in, on a CPU in float32, as the evaluation does.
    """

    def __init__(self, folder: Path, adapter: Path | None = None, max_tiles: int | None = None) -> None:
        self.name = (adapter or folder).resolve().name
        self._folder, self._adapter, self._max_tiles = folder, adapter, max_tiles
        with _readable(folder, "tokenizer or picture processor"):
            self._processor = load_processor(folder / MANIFEST)
        if max_tiles is not None and not cuts_into_tiles(self._processor):
            raise UserError("this model sees every picture as one tile", "leave out --max-tiles", file=folder)
        self._special = sorted(special_tokens(self._processor.tokenizer) - {PLACEHOLDER}, key=len, reverse=True)
        self._context = _context(folder)
        self._model: Any = None
        self._busy = threading.Lock()
        self._read_before: Read | None = None
        if not self._processor.tokenizer.chat_template:
            raise UserError("it has no chat template", _MAKE_ONE, file=folder)
        with _readable(folder, "chat template"):
            rendered = render(self._processor.tokenizer, [Turn("user", "words")], answer=True)
        if "words" not in rendered:
            raise UserError("its chat template takes no plain text", _MAKE_ONE, file=folder / "chat_template.jinja")

    def load(self) -> None:
        """Read the weights, if they are not there yet."""
        with _LOADING:
            if self._model is None:
                with _readable(self._folder, "weights"):
                    model = self._load()
                core = model.get_base_model() if isinstance(model, PeftModel) else model
                ends, pad = core.generation_config.eos_token_id, self._processor.tokenizer.pad_token_id
                # as in the evaluation: in the place of the directory's own, which may have a penalty on repetition
                core.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)
                self._model = model

    def _load(self) -> Any:
        if self._adapter is not None:
            from vlmflow.models.adapted import load_adapted

            return load_adapted(self._folder / MANIFEST, self._adapter / MANIFEST)
        config = read_json(self._folder / "config.json")
        stored = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        dtype = getattr(torch, stored) if torch.cuda.is_available() else torch.float32
        if (self._folder / MANIFEST).is_file():
            return load_model(self._folder / MANIFEST, dtype=dtype).to(device())
        return load_directory(self._folder, dtype=dtype).to(device())

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation up to where the model is to speak, by the template in its directory.

        Raises :class:`UserError` for control tokens in a text and for more tokens than the model reads.
        """
        for message in messages:
            for token in self._special:
                if token in message.text:
                    raise UserError(f"the text holds the control token {token}", "leave it out")
        sizes = [picture.size for picture in pictures(messages)]
        counts = picture_lengths(self._processor, sizes, self._max_tiles)
        ids = encode_prompt(self._processor.tokenizer, turns(messages), counts)
        if len(ids) >= self._context:
            raise UserError(
                f"{len(ids):,} tokens, {sum(counts):,} of them for {len(counts)} picture(s); "
                f"the model reads {self._context:,}",
                "start anew, or give it fewer pictures or frames, or fewer tiles",
            )
        return ids

    def stream(self, messages: Sequence[Message], settings: Settings) -> Iterator[Reply]:
        """The answer to the last message, whole so far, whenever it has grown. Closing the iterator stops the model."""
        prompt = self.prompt(messages)
        self.load()
        with self._busy:
            run = _Run()
            thread = threading.Thread(target=self._generate, args=(prompt, messages, settings, run), daemon=True)
            thread.start()
            try:
                yield from self._read(run, min(settings.max_new_tokens, self._context - len(prompt)))
            finally:
                run.stop.set()
                thread.join()

    def _read(self, run: _Run, limit: int) -> Iterator[Reply]:
        ids: list[int] = []
        text = ""
        while (got := run.tokens.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            ids += got
            grown = self._processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if grown != text and not grown.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character so far
                text = grown
                yield Reply(text)
        ended = ids and ids[-1] in _ends(self._model)
        whole = self._processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        yield Reply(whole, cut=len(ids) >= limit and not ended)

    @torch.no_grad()
    def _generate(self, prompt: list[int], messages: Sequence[Message], settings: Settings, run: _Run) -> None:
        try:
            cache, inputs = self._inputs(prompt, messages)
            draws = settings.temperature > 0
            sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
            with _DRAWING if draws else nullcontext():
                torch.manual_seed(settings.seed)
                made = self._model.generate(
                    **{name: value.to(self._model.device) for name, value in inputs.items()},
                    past_key_values=cache,
                    max_new_tokens=min(settings.max_new_tokens, self._context - len(prompt)),
                    do_sample=draws,
                    **(sampling if draws else {}),
                    streamer=run,
                    stopping_criteria=StoppingCriteriaList([run.criterion]),
                    return_dict_in_generate=True,
                )
            held = made.past_key_values
            ids = made.sequences[0, : held.get_seq_length()].tolist()
            self._read_before = Read(ids, tuple(pictures(messages)), held)
        except torch.OutOfMemoryError:
            run.tokens.put(UserError("too little GPU memory for this question", "give fewer pictures, or fewer tiles"))
        except Exception as error:
            run.tokens.put(error)
        finally:
            run.tokens.put(None)

    def _inputs(self, prompt: list[int], messages: Sequence[Message]) -> tuple[Any, dict[str, torch.Tensor]]:
        """The cache of what was read before, if the conversation goes on from there, and what else ``generate`` takes.

        A first question is read anew, bit for bit as the evaluation reads it.
        """
        read, self._read_before = self._read_before, None
        seen = pictures(messages)
        sizes = [picture.size for picture in seen]
        known, old = 0, 0
        if read is not None and any(message.role == "assistant" for message in messages):
            tokenizer = self._processor.tokenizer
            lengths = picture_lengths(self._processor, sizes, self._max_tiles)
            known, old = read.beginning(
                prompt, seen, lengths, tokenizer.convert_tokens_to_ids(picture_token(tokenizer))
            )
        if read is None or not known or not read.cut(known):
            read, old = None, 0
        ids = torch.tensor([prompt])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if len(seen) > old:
            before = sum(picture_tiles(self._processor, sizes, self._max_tiles)[:old])
            values = pixel_values(self._processor, seen, self._max_tiles)[before:]
            inputs["pixel_values"] = values.to(self._model.dtype)
        return read and read.cache, inputs


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """What libraries say of a directory that is no whole model as a :class:`UserError`, without their own advice."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError("too little GPU memory for its weights", "end what else uses the GPU", file=folder) from error
    except Exception as error:  # transformers, tokenizers, safetensors and Jinja raise many types
        said = str(error).split("If you were trying")[0].strip().split("\n")[0]
        reason = f"its {what} cannot be read: {type(error).__name__}: {shown(said, 200)}"
        raise UserError(reason, f"copy what is missing or damaged, or {_MAKE_ONE}", file=folder) from error


def _context(folder: Path) -> int:
    """The longest sequence that the model reads, in tokens."""
    text = read_json(folder / "config.json").get("text_config")
    if not isinstance(text, dict):
        raise UserError("its config.json has no text_config", _MAKE_ONE, file=folder)
    return int(text.get("max_position_embeddings", 2048))


def _ends(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


class _Run(BaseStreamer):
    """One answer on its way from the thread that generates: tokens, then None; or an exception."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[list[int] | Exception | None] = queue.Queue()
        self.stop = threading.Event()
        self.criterion = _Asked(self.stop)
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate``: the prompt first, then each token."""
        if self._prompt_seen:
            self.tokens.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Called by ``generate`` at the end."""


class _Asked(StoppingCriteria):
    """Whether somebody asked to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """(batch,) whether each answer is to end."""
        del scores, kwargs
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)
