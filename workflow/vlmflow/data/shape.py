"""Records against the JSON schema of their format: the schema is the documented truth, its compiled form the check."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from vlmflow.data.formats.draft import ROLES
from vlmflow.data.raw import Finding
from vlmflow.data.report import shown

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
_JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
_NEAR = 0.6  # difflib's ratio from which a key is taken for a misspelling


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """The schema of one record of a format (workflow/schemas/NAME.schema.yaml)."""
    loaded: dict[str, Any] = yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def known_keys(name: str) -> frozenset[str]:
    """The keys that a format reads."""
    return frozenset(schema(name)["properties"])


@functools.cache
def _validator(name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema(name))


def has_shape(name: str, value: Any) -> bool:
    """Whether a record follows the schema."""
    try:
        return _validator(name).is_valid(value)
    except ValueError:  # the validator cannot take the value in; wrong_shape says why
        return False


def wrong_shape(name: str, value: Any) -> list[Finding]:
    """How a record differs from the schema, each difference once."""
    try:
        return list(dict.fromkeys(_findings(name, value)))
    except UnicodeEncodeError:
        return [("broken character: half of a surrogate pair in a key", "write the keys anew as UTF-8", "")]
    except ValueError as error:  # lists in lists, or objects in objects, some hundred deep
        return [(f"nested too deeply: {shown(error)}", "correct the record", "")]


def _findings(name: str, value: Any) -> Iterator[Finding]:
    for error in _validator(name).iter_errors(value):
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path).lstrip(
            "."
        )
        if error.kind.name == "required":
            yield _missing(error.kind.as_dict()["property"], error.instance, where)
        elif error.kind.name == "enum" and where.endswith((".from", ".role")):
            near = difflib.get_close_matches(str(error.instance).lower()[:80], ROLES, n=1, cutoff=_NEAR)
            known = f"there is {', '.join(ROLES)}; tool calls are not supported"
            advice = f"the nearest known role is '{near[0]}'" if near else known
            yield f"unknown role: '{shown(error.instance)}'", advice, where
        elif error.kind.name == "type":
            wanted = " or ".join(sorted(error.kind.as_dict()["types"]))
            found = _JSON_TYPES.get(type(error.instance), "number")
            yield f"wrong type: {found} instead of {wanted}", "correct the value", where
        elif error.kind.name in ("minLength", "minItems"):
            optional = "leave the key out where it is optional"
            table = "put rows of text only into a table without this column"
            advice = f"fill it in, or {table if name == 'table' else optional}"
            yield "empty value: nothing is given", advice, where
        elif error.kind.name == "exclusiveMinimum":
            limit = error.kind.as_dict()["limit"]
            yield f"wrong value: {error.instance} is not greater than {limit}", "correct the number", where
        else:
            yield f"wrong value: {shown(error.message, 200)}", f"see workflow/schemas/{name}.schema.yaml", where


def _missing(key: str, value: Any, where: str) -> Finding:
    if not where and key == "conversations" and not _near(key, value) and not {"from", "value"} & set(value):
        known = "conversations (LLaVA, ShareGPT), messages (ms-swift 3, OpenAI) or query and response (ms-swift 2)"
        return f"missing key: '{key}'", f"a record has {known}; this one has {shown(', '.join(map(str, value)))}", where
    near = _near(key, value)
    return f"missing key: '{key}'", f"rename '{near}'" if near else f"add '{key}'", where


def _near(key: str, value: dict[str, Any]) -> str | None:
    return next(iter(difflib.get_close_matches(key, [shown(other) for other in value], n=1, cutoff=_NEAR)), None)
