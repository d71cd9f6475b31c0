"""The JSON schema of the configuration: what it allows at a place, its defaults, and what is wrong in words."""

from __future__ import annotations

import difflib
import functools
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
SCHEMA = SCHEMAS / "config.schema.yaml"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where there is libyaml


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
    if error.validator == "pattern" and "propertyNames" in error.absolute_schema_path:
        return f"{where}: '{error.instance}': {error.schema['description']}"
    if error.validator == "oneOf":
        return f"{where}: {error.instance!r} is none of what it may be: {error.schema['description']}"
    return f"{where}: {error.message}"


def nearest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'?``, or the list of what there is when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is {', '.join(sorted(known)) or 'none'}"
