"""Write docs/config.md, the reference of every configuration key, from workflow/schemas/config.schema.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "config.md"
SCHEMA: dict[str, Any] = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8"))
_SHARED = {
    "generate": "Generated annotations",
    "training": "Training keys",
    "weights": "Places of weights",
    "resources": "Resources",
}
_KINDS = {"array": "list", "object": "mapping"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_INTRODUCTION = """# Configuration reference

Written by `make docs` from `workflow/schemas/config.schema.yaml`; do not edit.

{description}

Several files are read as one, later values over earlier ones: `snakemake --configfile config/config.yaml my.yaml`.
`--config results=/scratch/me` sets one key. A `--configfile` that has `experiments` stands alone; under any other, and
without one, lies `config/config.yaml`.
"""

Node = dict[str, Any]


def page() -> str:
    """The whole of docs/config.md."""
    sections = {name: node for name, node in SCHEMA["properties"].items() if "additionalProperties" in node}
    top = {**SCHEMA, "properties": {name: v for name, v in SCHEMA["properties"].items() if name not in sections}}
    parts = [_INTRODUCTION.format(description=SCHEMA["description"]), "## Top level\n", _table(top)]
    for name, node in sections.items():
        entry = _resolved(node["additionalProperties"])
        parts += [f"## {name}.NAME\n", f"{node['description']}\n", *_remarks(entry), _table(entry)]
    for name, title in _SHARED.items():
        node = SCHEMA["$defs"][name]
        described = [f"{node['description']}\n"] if "description" in node else []
        parts += [f"## {title}\n", *described, *_remarks(node), _table(node)]
    return "\n".join(parts)


def _remarks(node: Node) -> Iterator[str]:
    for part in (node, *node.get("allOf", [])):
        if "oneOf" in part:
            yield f"Exactly one of {', '.join(_code(choice['required'][0]) for choice in part['oneOf'])}.\n"
    for part in (part for part in node.get("allOf", []) if "$ref" in part):
        title = _SHARED[_name(part)]
        yield f"And the [{title.lower()}](#{title.lower().replace(' ', '-')}).\n"


def _table(node: Node) -> str:
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *_rows(node, "")]
    return "\n".join(rows) + "\n"


def _rows(node: Node, prefix: str) -> Iterator[str]:
    parts = [_resolved(part).get("properties", {}) for part in node.get("allOf", [])]
    inherited = {key: value for part in parts for key, value in part.items()}
    for key, value in node["properties"].items():
        if node is SCHEMA["$defs"]["training"] and key in SCHEMA["$defs"]["finetune"]["properties"]:
            continue  # its default depends on the stage
        value = {**inherited.get(key, {}), **_resolved(value)}
        if _name(value) in _SHARED:
            title = _SHARED[_name(value)].lower()
            yield f"| `{prefix}{key}` | [{title}](#{title.replace(' ', '-')}) | | {value['description']} |"
        elif "properties" in value:
            yield from _rows(value, f"{prefix}{key}.")
        else:
            unset = " **required** " if key in node.get("required", []) else " "
            default = f" {_code(value['default'])} " if "default" in value else unset
            yield f"| `{prefix}{key}` | {_kind(value)} |{default}| {value['description']} |"


def _kind(value: Node) -> str:
    if "oneOf" in value:
        return " or ".join(map(_kind, value["oneOf"]))
    if "enum" in value:
        return ", ".join(map(_code, value["enum"]))
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    bounds = "".join(f" {sign} {value[key]}" for key, sign in _BOUNDS.items() if key in value)
    return " or ".join(f"{kind}{bounds}" if kind in ("integer", "number") else _KINDS.get(kind, kind) for kind in kinds)


def _resolved(node: Node) -> Node:
    return {**SCHEMA["$defs"][_name(node)], **node} if "$ref" in node else node


def _name(node: Node) -> str:
    return str(node.get("$ref", "")).rsplit("/", 1)[-1]


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
