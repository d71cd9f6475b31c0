"""The variants of a sweep as they are written down: a grid, a list or a table; every key and value checked."""

from __future__ import annotations

import csv
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import yaml

from vlmflow.errors import UserError
from vlmflow.schema import describe, given, infinite, nearest, properties, schema, target

STAGES = ("finetune", "pretrain", "model")
_NAME = "name"
_OTHER_MODEL = ("published", "registry", "family", "language", "vision", "checkpoint")
_NAMES = r"[A-Za-z0-9_-]{1,100}"
_NAMES_DESCRIBED = "a name is made of letters, digits, '_' and '-', 100 of them at most"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """One variant: where it is written, the name it was given, and STAGE.KEY -> value of what it changes."""

    place: str
    name: str | None
    values: dict[str, Any]


def read_rows(place: str, sweep: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """The variants of ``sweep``, numbers as numbers, and what is wrong with them.

    YAML reads ``1e-4`` as text, and every cell of a table is text: text that is a number counts as one where the
    schema wants one.
    """
    try:
        rows = list(_written(place, sweep))
    except UserError as error:
        return [], [f"{place}.table: {error}"]
    problems = []
    for row in rows:
        for key, value in row.values.items():
            row.values[key], found = _value(key, value)
            problems += [f"{row.place}: {problem}" for problem in found]
        if row.name is not None and not re.fullmatch(_NAMES, row.name):
            problems.append(f"{row.place}: name: {given(row.name)}: {_NAMES_DESCRIBED}")
    return rows, list(dict.fromkeys(problems))  # each value of a grid is in several variants


def _written(place: str, sweep: dict[str, Any]) -> Iterator[Row]:
    if "grid" in sweep:
        for combination in itertools.product(*sweep["grid"].values()):
            yield Row(f"{place}.grid", None, dict(zip(map(str, sweep["grid"]), combination, strict=True)))
    for number, row in enumerate(sweep.get("variants", []), 1):
        values = {str(key): value for key, value in row.items() if key != _NAME}
        yield Row(f"{place}.variants, number {number}", None if row.get(_NAME) is None else str(row[_NAME]), values)
    if "table" in sweep:
        yield from _table(Path(sweep["table"]).expanduser())


def _table(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter=_SEPARATORS[path.suffix], strict=True)
            table = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(line)]
    except FileNotFoundError:
        raise UserError("no such file; it is looked for from the working directory", file=path) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not readable as a table: {error}", file=path) from None
    if len(table) < 2:
        raise UserError("no variants: a line with the keys, then one per variant", file=path)
    (_, head), *rows = table
    if "" in head or len(set(head)) < len(head):
        raise UserError("a column of the first line has no name, or two have the same", file=path)
    for problem in (_schema_of(key)[1] for key in head if key != _NAME):
        if problem:
            raise UserError(problem, file=path)
    for number, cells in rows:
        if len(cells) != len(head):
            raise UserError(f"line {number} has {len(cells)} cells, the first line {len(head)}", file=path)
        given = {key: cell for key, cell in zip(head, cells, strict=True) if cell}
        values = {key: _cell(key, cell) for key, cell in given.items() if key != _NAME}
        yield Row(f"{path}, line {number}", given.get(_NAME), values)


def _cell(key: str, cell: str) -> Any:
    """A cell as YAML, unless text is wanted: lists, weights, true and null can be written."""
    if _schema_of(key)[0].get("type") == "string":
        return cell
    try:
        return yaml.safe_load(cell)
    except yaml.YAMLError:
        return cell


def _value(key: str, value: Any) -> tuple[Any, list[str]]:
    """The value in its right type, and what is wrong with key or value."""
    node, problem = _schema_of(key)
    if problem:
        return value, [problem]
    value = _number(value, node)
    return value, [*(describe(error, key) for error in _validator(key).iter_errors(value)), *infinite(value, key)]


@functools.cache
def _validator(key: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**_schema_of(key)[0], "$defs": schema()["$defs"]})


@functools.cache
def _schema_of(key: str) -> tuple[dict[str, Any], str]:
    """The schema of the values of STAGE.KEY, and why there is none."""
    stage, *path = key.split(".")
    if stage == "evaluation":
        return {}, f"'{key}': all variants are asked the same questions, those of the base's evaluations"
    if stage not in STAGES:
        return {}, f"no key '{key}' here{nearest(key, [f'{known}.' for known in STAGES])}; write STAGE.KEY"
    if stage == "model" and path[:1] and path[0] in _OTHER_MODEL:
        return (
            {},
            f"'{key}': describe the other model in `models` and vary pretrain.model, or finetune.init, by its name",
        )
    node, place = schema()["$defs"][stage], stage
    for part in path:
        known = properties(node)
        rest = node.get("additionalProperties")
        if part not in known and not isinstance(rest, dict):
            return {}, f"{place}: no key '{part}' here{nearest(part, list(known))}"
        node, place = target(known.get(part, rest)), f"{place}.{part}"
    if properties(node):
        return {}, f"'{key}': name the keys in it, as in {key}.{min(properties(node))}"
    return node, ""


def _number(value: Any, node: dict[str, Any]) -> Any:
    """Text that is a number as a number, where ``node`` takes numbers and no text; also inside lists and mappings."""
    if isinstance(value, list):
        return [_number(item, node.get("items", {})) for item in value]
    if isinstance(value, dict):
        rest = node.get("additionalProperties")
        return {key: _number(item, rest if isinstance(rest, dict) else {}) for key, item in value.items()}
    types = {kind for choice in node.get("oneOf", [node]) for kind in _types(choice)}
    if not isinstance(value, str) or "string" in types or not types & {"number", "integer"}:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _types(node: dict[str, Any]) -> list[str]:
    kinds = node.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]
