"""What XTuner trained, as the same artefact that fine-tuning here leaves behind, ready to be merged."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig

from vlmflow.convert.layout import naming
from vlmflow.convert.xtuner_names import LORA, is_adapter, xtuner_rules
from vlmflow.convert.xtuner_read import Renamed, content_hash, read_xtuner
from vlmflow.errors import UserError
from vlmflow.files import read_manifest, staged_directory, write_manifest
from vlmflow.models.directory import LANGUAGE, PROJECTOR, PROJECTOR_FILE, VISION
from vlmflow.provenance import write_provenance
from vlmflow.training.options import FinetuneOptions
from vlmflow.training.parts import part_file
from vlmflow.weights.checkpoint import WEIGHTS
from vlmflow.weights.kinds import Tensors
from vlmflow.weights.mapping import Piece, listed, plan
from vlmflow.weights.skeleton import disk_name, skeleton
from vlmflow.weights.stream import write_tensors

logger = logging.getLogger(__name__)
HEAD = "lm_head"
_PEFT = "base_model.model."
_OTHER = "give the whole checkpoint that XTuner wrote, and as init the model that it trained"


def import_adapter(config: FinetuneOptions, checkpoint: Path, model: Path, output: Path) -> None:
    """Make a fine-tuning result (manifest ``output``) of ``checkpoint``, which XTuner trained over the base ``model``.

    ``checkpoint`` is a ``.pth`` file, the directory that DeepSpeed makes of one, or a folder of ``xtuner convert
    pth_to_hf``; ``model`` is a manifest. Refused, by name, is every tensor that is missing, unexpected, there twice or
    of another shape than the base's, and a rank or scale that differs from ``config.lora``.
    """
    base = read_manifest(model)["hash"]
    tensors = read_xtuner(checkpoint, config.lora)
    with naming(checkpoint):
        parts = _Parts(AutoConfig.from_pretrained(model.parent, local_files_only=True), tensors)
        parts.check(config)
        with staged_directory(output.parent, checkpoint, model) as directory:
            parts.write_projector(directory)
            if parts.adapter:
                parts.write_adapter(directory, config, model)
            else:
                parts.write_full(directory)
            facts = {
                "tensors": len(tensors.kinds),
                "adapts_output_matrix": any(f".{HEAD}." in target for target in _targets(parts.adapter)),
            }
            logger.info("%s", facts)
            inputs = {"model": base, "checkpoint": content_hash(checkpoint)}
            write_provenance(directory, asdict(config), inputs, imported={"from": "xtuner", **facts})
            write_manifest(directory, base=base)


class _Parts:
    """The steps that make the projector, and either adapters or weights, of what XTuner trained."""

    def __init__(self, config: Any, tensors: Renamed) -> None:
        self._network = skeleton(config)
        self._tensors = tensors
        self._tied = bool(self._network.config.tie_word_embeddings)
        self._modules = {disk_name(name, config): name for name in self._network.state_dict()}
        with _advising():
            pieces = self._in_memory(plan(xtuner_rules(config), tensors.kinds))
        self.adapter = [piece for piece in pieces if is_adapter(piece.targets[0])]
        whole = [piece for piece in pieces if not is_adapter(piece.targets[0])]
        self.projector = [piece for piece in whole if piece.targets[0].startswith(PROJECTOR)]
        self.full = [piece for piece in whole if not piece.targets[0].startswith(PROJECTOR)]

    def _in_memory(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same steps with the names that PEFT and the module tree use for their results."""
        renamed: list[Piece] = []
        unexpected: list[str] = []
        for piece in pieces:
            targets = [self._in_module_tree(target) for target in piece.targets]
            found = [target for target in targets if target is not None]
            if len(found) < len(targets):
                unexpected += piece.sources
            renamed.append(piece._replace(targets=tuple(found)))
        if unexpected:
            reason = "trained over another model, this one has no such layers: " + listed(unexpected=unexpected)
            raise UserError(reason, _OTHER)
        return renamed

    def _in_module_tree(self, target: str) -> str | None:
        end = next((end for end in LORA if target.endswith(end)), None)
        if end is None:
            return self._modules.get(target)
        name = self._modules.get(target.removesuffix(end) + ".weight")
        return None if name is None else _PEFT + name.removesuffix(".weight") + end

    def check(self, options: FinetuneOptions) -> None:
        """Refuse what cannot be an artefact, or was trained in another way than ``options`` say."""
        if not self.adapter and not self.full:
            reason = "holds a projector at most, no adapter and no language model"
            raise UserError(reason, "give the checkpoint of fine-tuning, not of pretraining")
        if self.adapter and self.full:
            one, other = self.full[0].sources[0], self.adapter[0].sources[0]
            raise UserError(
                f"has both adapters ({other}) and weights that were trained in full ({one})",
                "merge the adapter with XTuner first",
            )
        if self.adapter and options.lora is None:
            raise UserError("adapters, but the method is full", "set method: lora or qlora", field="method")
        if self.full and options.lora is not None:
            raise UserError("all weights, but the method has adapters", "set method: full", field="method")
        if options.lora is not None:
            self._check_rank((_PEFT + LANGUAGE, _PEFT + HEAD), "rank", options.lora["rank"])
            self._check_rank((_PEFT + VISION,), "vision_rank", options.lora["vision_rank"])
        if self._tied and any(HEAD in target for target in _targets(self.adapter)):
            raise UserError("adapts the output matrix, which is the embedding in this model")

    def _check_rank(self, parts: tuple[str, ...], key: str, rank: int) -> None:
        ranks = {
            self._tensors.kinds[piece.sources[0]].shape[0]
            for piece in self.adapter
            if piece.targets[0].startswith(parts) and piece.targets[0].endswith(LORA[0])
        }
        if ranks - {rank} or (rank and not ranks):
            raise UserError(
                f"rank {' and '.join(map(str, sorted(ranks))) or 0} was trained, the configuration says {rank}",
                f"set {key} and the alpha beside it to what XTuner's configuration has",
                field=f"lora.{key}",
            )

    def write_projector(self, directory: Path) -> None:
        """Its tensors under the names that the projector module itself uses."""
        shapes = self._shapes(PROJECTOR)
        pieces = [
            piece._replace(targets=tuple(target.removeprefix(PROJECTOR + ".") for target in piece.targets))
            for piece in self.projector
        ]
        expected = {name.removeprefix(PROJECTOR + "."): shape for name, shape in shapes.items()}
        _write(self._tensors, pieces, expected, directory / PROJECTOR_FILE)

    def write_adapter(self, directory: Path, options: FinetuneOptions, model: Path) -> None:
        """A PEFT directory, with every tensor that PEFT expects in it and no other."""
        lora = _lora_config(options.lora or {}, _targets(self.adapter))
        network = get_peft_model(self._network, lora, low_cpu_mem_usage=True)
        state = get_peft_model_state_dict(network, save_embedding_layers=False)
        expected = {name: tuple(value.shape) for name, value in state.items()}
        _write(self._tensors, self.adapter, expected, directory / "adapter_model.safetensors")
        lora.base_model_name_or_path = str(model.parent)
        lora.inference_mode = True
        lora.save_pretrained(str(directory))

    def write_full(self, directory: Path) -> None:
        """The weights of every part that was trained in full."""
        expected = self._shapes(LANGUAGE) | self._shapes(HEAD)
        if any(target.startswith(VISION) for target in _targets(self.full)):
            expected |= self._shapes(VISION)
        if self._tied:
            self._drop_copy_of_embedding()
            expected.pop(f"{HEAD}.weight")
        _write(self._tensors, self.full, expected, directory / part_file("language"))

    def _drop_copy_of_embedding(self) -> None:
        sources = {piece.targets[0]: piece.sources[0] for piece in self.full}
        head, embedding = sources.get(f"{HEAD}.weight"), sources.get(f"{LANGUAGE}.embed_tokens.weight")
        if head is None or embedding is None:
            return
        if not torch.equal(self._tensors.read(head), self._tensors.read(embedding)):
            raise UserError(f"{head} differs from {embedding}, in this model they are one matrix")
        self.full = [piece for piece in self.full if piece.sources[0] != head]

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        state = self._network.state_dict()
        return {name: tuple(value.shape) for name, value in state.items() if name.startswith(part + ".")}


def _lora_config(lora: Mapping[str, Any], targets: Sequence[str]) -> LoraConfig:
    """Adapters on exactly the layers that ``targets``, names of adapter tensors, belong to."""
    modules = {target.removeprefix(_PEFT).removesuffix(end) for target in targets for end in LORA}
    modules = {module for module in modules if ".lora_" not in module}
    patterns = sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(module)) for module in modules})
    vision = "|".join(pattern for pattern in patterns if pattern.startswith(re.escape(VISION)))
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="|".join(patterns),
        rank_pattern={vision: lora["vision_rank"]} if vision else {},
        alpha_pattern={vision: lora["vision_alpha"]} if vision else {},
    )


def _write(tensors: Tensors, pieces: Sequence[Piece], expected: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Write what the pieces make into one safetensors file."""
    for piece in pieces:
        kinds = [tensors.kinds[source] for source in piece.sources]
        try:
            piece.make(*(torch.empty(kind.shape, device="meta") for kind in kinds))
        except (RuntimeError, UserError):
            reason = f"{piece.sources[0]} {list(kinds[0].shape)} is of a model of other dimensions"
            raise UserError(reason, _OTHER) from None
    scratch = file.with_suffix(".part")
    scratch.mkdir()
    with _advising():
        write_tensors(tensors, pieces, scratch, expected, max_shard_bytes=sys.maxsize)
    (scratch / WEIGHTS).rename(file)
    scratch.rmdir()


@contextmanager
def _advising() -> Iterator[None]:
    """Errors that name no file, which are about tensors that do not fit, get advice for a checkpoint of XTuner."""
    try:
        yield
    except UserError as error:
        if error.problem.file is not None:
            raise
        raise UserError(error.problem.reason, _OTHER, field=error.problem.field) from None


def _targets(pieces: Sequence[Piece]) -> list[str]:
    return [target for piece in pieces for target in piece.targets]
