"""Published models as config/models/NAME.yaml holds them: where they are, prompt, size and config.json."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlmflow.errors import UserError
from vlmflow.files import read_json

_TELLING = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
"""Keys of config.json that tell models apart."""
MODELS = Path(__file__).parents[3] / "config" / "models"


@dataclass(frozen=True)
class Published:
    """One published model; a LLaVA has a language and a vision repository, an InternVL one for all."""

    name: str
    family: str
    """``internvl`` or ``llava``."""
    hub: str | dict[str, str]
    """Repository on Hugging Face; of a LLaVA ``language`` and ``vision``."""
    modelscope: str | dict[str, str] | None
    """The same on ModelScope, None if not known."""
    template: str
    """Name of its prompt template (vlmflow.models.template)."""
    parameters: int
    """Number of parameters that follows from ``config``."""
    published: int | None
    """Number of parameters its authors state, rounded; None if they state none."""
    config: dict[str, Any]
    """The published config.json; of a LLaVA ``language`` and ``vision``, each that of its repository."""


def published_names() -> list[str]:
    """Names of all published models, sorted."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def published(name: str) -> Published:
    """The published model ``name``; raises :class:`UserError` if there is none."""
    names = published_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)
        advice = f"did you mean {near[0]}? There is {', '.join(names)}" if near else f"there is nothing in {MODELS}"
        raise UserError(f"unknown model: {name}", advice)
    content = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Published(name=name, **content)


def check_published(name: str, part: str, folder: Path) -> None:
    """Raise :class:`UserError` if the checkpoint in ``folder`` is not the ``part`` (``checkpoint``, ``language``,
    ``vision``) of the published model ``name``, by the sizes in its config.json.
    """
    model = published(name)
    wanted = model.config if part == "checkpoint" else model.config[part]
    found = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for place in ("", "llm_config", "vision_config"):
        ours, theirs = (content.get(place, {}) if place else content for content in (wanted, found))
        for key in _TELLING:
            if key in ours and key in theirs and ours[key] != theirs[key]:
                raise UserError(
                    f"not {name}: {key} is {theirs[key]}, {ours[key]} was published",
                    "name the model that this is in `published`, or leave `published` out and give `family`",
                    file=folder / "config.json",
                    field=f"{place}.{key}".lstrip("."),
                )


def fill_published(config: dict[str, Any]) -> Iterator[str]:
    """Give each node of ``models`` that names a published model what it leaves out, its downloads included; in place.

    Yields what is wrong.
    """
    for name, node in config["models"].items():
        if "published" not in node:
            continue
        try:
            model = published(node["published"])
        except UserError as error:
            yield f"models.{name}.published: {error.problem.reason} ({error.problem.advice})"
            continue
        registry = node.get("registry", "hub")
        places = {"hub": model.hub, "modelscope": model.modelscope}[registry]
        if places is None:
            yield f"models.{name}.registry: {model.name} is not known to be on {registry}"
            continue
        if node.get("family", model.family) != model.family:
            yield f"models.{name}.family: {model.name} is of family {model.family}"
        node |= {"family": model.family, "template": node.get("template", model.template)}
        parts = {"checkpoint": places} if isinstance(places, str) else places
        for part, repository in parts.items():
            if part not in node and "checkpoint" not in node:
                node[part] = {"source": f"{name}-{part}"}
                config.setdefault("sources", {})[f"{name}-{part}"] = {registry: repository}
