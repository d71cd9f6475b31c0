"""The JSON schema of the configuration: what it allows at a place, its defaults, and what is wrong in words."""

from __future__ import annotations

import datetime
import difflib
import functools
import json
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
SCHEMA = SCHEMAS / "config.schema.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where there is libyaml

_LONGEST = 80  # characters of a value in a message
_EXPONENT = re.compile(r"[+-]?\d+e[+-]?\d+", re.IGNORECASE)
_KINDS = {"number": "a number", "integer": "a whole number", "string": "text", "boolean": "true or false",
          "array": "a list", "object": "a mapping (KEY: VALUE)", "null": "null"}  # fmt: skip


@functools.cache
def schema(name: str = "config") -> dict[str, Any]:
    """A JSON schema (workflow/schemas/NAME.schema.yaml), that of the configuration unless another is named."""
    loaded: dict[str, Any] = yaml.load((SCHEMAS / f"{name}.schema.yaml").read_text(encoding="utf-8"), _LOADER)
    return loaded


def properties(node: dict[str, Any]) -> dict[str, Any]:
    """The named properties of an object schema, those of its ``allOf`` parts first; its own win key by key."""
    parts = [properties(target(part)) for part in node.get("allOf", [])]
    found: dict[str, Any] = {}
    for part in (*parts, node.get("properties", {})):
        found.update({name: {**found.get(name, {}), **child} for name, child in part.items()})
    return found


def target(node: dict[str, Any]) -> dict[str, Any]:
    """``node`` merged over what its ``$ref`` points to (always ``#/$defs/NAME`` here)."""
    if "$ref" not in node:
        return node
    return {**target(schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]), **node}


def fill_defaults(value: Any, node: dict[str, Any]) -> None:
    """Add every default of the schema ``node`` that ``value`` does not have, to any depth."""
    node = target(node)
    if not isinstance(value, dict):
        return
    for name, child in properties(node).items():
        child = target(child)
        if name not in value and "default" in child:
            value[name] = deepcopy(child["default"])
        if name in value:
            fill_defaults(value[name], child)
    if isinstance(node.get("additionalProperties"), dict):
        for child_value in value.values():
            fill_defaults(child_value, node["additionalProperties"])


def describe(error: jsonschema.ValidationError, above: str = "") -> str:
    """A violation of the schema as ``place: reason``; ``above`` is the place of the value that was checked."""
    where = ".".join([*([above] if above else []), *map(str, error.absolute_path)]) or "the top level"
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        known = list(properties(error.schema))
        unknown = [key for key in error.instance if key not in known]
        return f"{where}: " + "; ".join(f"no key '{key}' here{nearest(key, known)}" for key in unknown)
    if error.validator in ("oneOf", "anyOf") and "required" in error.validator_value[0]:
        choices = [alternative["required"][0] for alternative in error.validator_value]
        return f"{where}: give {'exactly ' * (error.validator == 'oneOf')}one of {', '.join(choices)}"
    value, wanted = given(error.instance), error.validator_value
    if error.validator == "type":
        kinds = " or ".join(_KINDS[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))
        text = isinstance(error.instance, str)
        point = (
            "; YAML wants a point before the exponent, as in 1.0e-3"
            if text and _EXPONENT.fullmatch(value[1:-1])
            else ""
        )
        return f"{where}: {value} is {'text, ' * text}not {kinds}{point}"
    if error.validator == "enum":
        return f"{where}: {value} is not one of {', '.join('null' if one is None else str(one) for one in wanted)}"
    if error.validator in ("pattern", "oneOf"):
        return f"{where}: {value} is none of what it may be: {error.schema['description']}"
    return f"{where}: {error.message}"


def is_echo(error: jsonschema.ValidationError) -> bool:
    """Whether it only repeats another one: where a part of an object is wrong, none of its keys counts as known."""
    return error.validator == "unevaluatedProperties" and not set(error.instance) - set(properties(error.schema))


def given(value: Any) -> str:
    """A value of a YAML file as it may be written there; long ones are cut."""
    if isinstance(value, bool):
        return "true (for YAML also yes, on)" if value else "false (for YAML also no, off)"
    if isinstance(value, datetime.date):
        return f"{value} (a date)"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def infinite(value: Any, place: str) -> Iterator[str]:
    """What is wrong with numbers that are none, or without end, at ``place`` and below."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from infinite(child, f"{place}.{key}" if place else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{place}: {value} is no finite number"


def nearest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'?``, or the list of what there is when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is {', '.join(sorted(known)) or 'none'}"
