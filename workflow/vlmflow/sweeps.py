"""Sweeps: variants of an experiment become ordinary nodes, so that nothing else need know of them.

Variants share every node that their values do not tell apart, and the base's nodes where they equal it. A node is named
after the base's node and the values that differ from it (``qlora-learning_rate-1e-4--lora_rank-64``): names stay when
variants or keys are added or reordered, and two sweeps over one base share what they have in common.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from typing import Any

from vlmflow.methods import has_effect
from vlmflow.schema import nearest
from vlmflow.sweep_rows import Row, read_rows

Config = dict[str, Any]
Values = dict[str, Any]
"""STAGE.KEY -> value."""

_LONGEST = 60  # characters of what tells a name from the base's; a longer one ends in a hash
_DIGITS = 8  # of that hash


_DATA = {f"{stage}.{key}" for stage in ("finetune", "pretrain") for key in ("max_length", "too_long", "max_dropped")}
_DATA |= {"finetune.init", "finetune.datasets", "pretrain.model", "pretrain.dataset"}
"""Keys that the data of a training depends on, besides those of its model."""
_BESIDES = ("finetune.merge.keep", "finetune.convert.official")
"""Keys that change what is kept or written besides, and no score; like ``resources`` they make no variant."""


class _RefusedError(Exception):
    """A variant that cannot be."""


def expand(config: Config) -> Iterator[str]:
    """Add the nodes of every sweep to ``config``, in which every default is filled in; yields what is wrong.

    Afterwards every sweep is a list of ``variants`` with a ``name`` each, but for one that is the base itself.
    """
    for name, sweep in config["sweeps"].items():
        rows, problems = read_rows(f"sweeps.{name}", sweep)
        yield from problems
        variants: list[Values] = []
        seen: dict[str, str] = {}
        for row in rows if not problems else ():
            try:
                variants += _expand_variant(config, name, sweep["base"], row, seen)
            except _RefusedError as reason:
                yield f"{row.place}: {reason}"
        config["sweeps"][name] = {"base": sweep["base"], "variants": variants}


def changes_scores(key: str) -> bool:
    """Whether STAGE.KEY can change what an experiment comes to."""
    return key not in _BESIDES and key.split(".")[1] != "resources"


def experiment_of(sweep: str, base: str, variant: Values) -> str:
    """The experiment of a variant of an expanded sweep."""
    return f"{sweep}-{variant['name']}" if "name" in variant else base


def effective(config: Config, experiment: str, key: str) -> Any:
    """The value of STAGE.KEY in an experiment, None where it has no such stage or no use for it."""
    stage, *path = key.split(".")
    finetune = config["finetunes"][config["experiments"][experiment]["finetune"]]
    if stage == "finetune" and not has_effect(".".join(path), finetune["method"]):
        return None
    pretrain = config["pretrains"].get(finetune["init"], {})
    model = config["models"][pretrain.get("model", finetune["init"])]
    nodes = {"finetune": finetune, "pretrain": pretrain, "model": model}
    return _get(nodes[stage], path)


def data_nodes(config: Config) -> dict[tuple[str, str], str]:
    """(``finetune`` or ``pretrain``, variant's node) -> the node with the same data that its variants share.

    What is made of data alone (counted tokens, the search for leaked pictures, baselines) is made once for it.
    """
    shared = {}
    for sweep, node in config["sweeps"].items():
        base = config["experiments"][node["base"]]["finetune"]
        for variant in node["variants"]:
            finetune = config["experiments"][experiment_of(sweep, node["base"], variant)]["finetune"]
            common, _ = _expand_nodes(config, base, _data_values(variant))
            shared["finetune", finetune] = common
            shared["pretrain", config["finetunes"][finetune]["init"]] = config["finetunes"][common]["init"]
    return shared


def _data_values(values: Values) -> Values:
    kept = ("model.", "finetune.datasets.")
    return {
        key: value
        for key, value in values.items()
        if key in _DATA or (key.startswith(kept) and not key.startswith("model.resources."))
    }


def _expand_variant(config: Config, sweep: str, base: str, row: Row, seen: dict[str, str]) -> list[Values]:
    """Add a variant's nodes to ``config``, and what it is told by to ``seen``; returns it with its name.

    Nothing is returned for one that its method makes the same as another, as in a grid of methods and ranks.
    """
    values = _used(config["finetunes"][config["experiments"][base]["finetune"]], row.values)
    finetune, told = _expand_nodes(config, config["experiments"][base]["finetune"], values)
    _expand_nodes(config, config["experiments"][base]["finetune"], _data_values(values))
    name = row.name or (_slug(told, "finetune") if told else None)
    changes = ", ".join(f"{_short(key, 'finetune')} {_words(value)}" for key, value in told.items())
    marks = (f"name {name}", f"values {json.dumps(told, sort_keys=True)}")
    if values != row.values and row.name is None and marks[1] in seen:
        return []
    for mark in marks:
        if mark in seen:
            raise _RefusedError(f"{changes or name or 'the base'}: the same variant or name as in {seen[mark]}")
        seen[mark] = row.place
    if name:
        title = config["experiments"][base]["title"] or base
        node = {**config["experiments"][base], "finetune": finetune, "title": f"{title}: {changes or name}"}
        _add(config, "experiments", f"{sweep}-{name}", node)
    return [{**({"name": name} if name else {}), **values}]


def _used(finetune: dict[str, Any], values: Values) -> Values:
    """``values`` less those that the method leaves unused, if the variant itself chooses the method."""
    method = values.get("finetune.method", finetune["method"])
    stage = "finetune."
    unused = [key for key in values if key.startswith(stage) and not has_effect(key.removeprefix(stage), method)]
    if unused and "finetune.method" not in values:
        raise _RefusedError(f"{unused[0]}: changes nothing with method: {method}")
    return {key: value for key, value in values.items() if key not in unused}


def _expand_nodes(config: Config, finetune: str, values: Values) -> tuple[str, Values]:
    """Add what differs from ``finetune`` and the nodes under it; returns the variant's finetune and what tells it."""
    init = values.get("finetune.init", config["finetunes"][finetune]["init"])
    pretrain = config["pretrains"].get(init)
    model = values.get("pretrain.model", pretrain["model"]) if pretrain else init
    for key in (key for key in values if key.startswith("pretrain.") and not pretrain):
        raise _RefusedError(f"{key}: no pretrain '{init}'{nearest(init, list(config['pretrains']))}")
    if model not in config["models"]:
        known = [*config["models"], *([] if pretrain else config["pretrains"])]
        raise _RefusedError(f"{'pretrain.model' if pretrain else 'finetune.init'}: no '{model}'{nearest(model, known)}")
    if "model.max_tiles" in values and config["models"][model]["family"] == "llava":
        raise _RefusedError("model.max_tiles: changes nothing with family: llava, which sees a picture as one tile")
    model, told = _derive(config, "model", model, values, {}, {})
    if pretrain:
        model, told = _derive(config, "pretrain", init, values, {"model": model}, told)
    return _derive(config, "finetune", finetune, values, {"init": model}, told)


def _derive(
    config: Config, stage: str, base: str, values: Values, links: dict[str, str], below: Values
) -> tuple[str, Values]:
    """The node of a stage with the stage's ``values``, and STAGE.KEY -> value of what tells it from ``base``.

    ``links`` are its references to the nodes under it, ``below`` is what tells those.
    """
    section, original = f"{stage}s", config[f"{stage}s"][base]
    node, told = deepcopy(original), {}
    for key in sorted(key for key in values if key.split(".")[0] == stage):
        path = key.split(".")[1:]
        if values[key] != _get(original, path):
            _set(node, path, key, values[key])
            told.update({key: values[key]} if changes_scores(key) else {})
    node.update(links)
    if node == original:
        return base, {}
    told.update(below)
    if not told:
        others = " and ".join(key for key in sorted(values) if key.startswith(f"{stage}.") and not changes_scores(key))
        raise _RefusedError(f"only {others} differs from the base, which changes no score")
    name = f"{base}-{_slug(told, stage)}"
    _add(config, section, name, node)
    return name, told


def _add(config: Config, section: str, name: str, node: dict[str, Any]) -> None:
    if config[section].setdefault(name, node) != node:
        raise _RefusedError(
            f"{section}.{name} is there already, and is another one; rename it, or give the variant a name"
        )


def _get(node: dict[str, Any], path: list[str]) -> Any:
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None  # type: ignore[assignment]
    return node


def _set(node: dict[str, Any], path: list[str], key: str, value: Any) -> None:
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise _RefusedError(f"{key}: {part} is a list in the base; write it as NAME: WEIGHT there")
    node[path[-1]] = value


def _slug(told: Values, stage: str) -> str:
    """What tells a node, for its name: letters, digits, '_' and '-' only."""
    text = "--".join(f"{_short(key, stage)}-{_words(value)}" for key, value in told.items())
    text = re.sub(r"[^A-Za-z0-9_-]+", "_", text)
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return f"{text[: _LONGEST - _DIGITS - 1].rstrip('-_')}-{digest}"


def _short(key: str, stage: str) -> str:
    return key.removeprefix(f"{stage}.").replace(".", "_")


def _words(value: Any) -> str:
    """A value in a name: a fraction as digits and power of ten (1e-4, 15e-5), a list by its items."""
    if isinstance(value, float) and not value.is_integer():
        sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        return f"{'-' * sign}{''.join(map(str, digits))}e{exponent}"
    if isinstance(value, dict):
        return "-".join(f"{key}-{_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "-".join(map(_words, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return str(int(value)) if isinstance(value, float) else str(value)
