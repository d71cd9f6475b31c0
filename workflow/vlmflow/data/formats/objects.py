"""``objects`` of ms-swift: what ``<ref-object>`` and ``<bbox>`` in the text stand for.

Version 2 lists ``{caption, bbox, bbox_type, image}`` (or ``[caption, bbox]``), perhaps as a JSON string; version 3 has
the lists ``ref``, ``bbox`` and ``image_id`` beside one ``bbox_type`` (swift/template/base.py).
"""

from __future__ import annotations

import json
from typing import Any

from vlmflow.data.formats.draft import UnusableError
from vlmflow.data.records import Box, Corners

_TYPES = {"real": "real", "norm_1": "norm_1", "norm1": "norm_1", "norm_1000": "norm_1000", "norm1000": "norm_1000"}

_LARGEST = 1_000_000_000  # no number of a box is larger; NaN is not smaller either


def read_objects(value: Any) -> tuple[list[str], list[Box]]:
    """Names and boxes of an ``objects`` key; raises :class:`UnusableError` when it is neither version's."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"not valid JSON: {error}", "correct the text of 'objects'", "objects") from None
    if not value:
        return [], []
    return _version_3(value) if isinstance(value, dict) else _version_2(value)


def _version_2(items: Any) -> tuple[list[str], list[Box]]:
    if not isinstance(items, list):
        raise _wrong("objects is a list of objects", "objects")
    refs, boxes = [], []
    for index, item in enumerate(items):
        where = f"objects[{index}]"
        if isinstance(item, list) and len(item) == 2:
            item = {"caption": item[0], "bbox": item[1]}
        if not isinstance(item, dict) or not isinstance(item.get("caption", ""), str) or "bbox" not in item:
            raise _wrong("an object has a caption and a bbox", where)
        image = item.get("image", 0)
        boxes.append(_box(image, item.get("bbox_type", "real"), item["bbox"], item.get("caption", ""), where))
        refs.append(item.get("caption", ""))
    return refs, boxes


def _version_3(value: dict[str, Any]) -> tuple[list[str], list[Box]]:
    refs, found = value.get("ref") or [], value.get("bbox") or []
    if not isinstance(refs, list) or not all(isinstance(ref, str) for ref in refs) or not isinstance(found, list):
        raise _wrong("ref is a list of names, bbox a list of boxes", "objects")
    images = value.get("image_id") or [0] * len(found)
    if not isinstance(images, list) or len(images) != len(found):
        raise _wrong("image_id has an entry for each box", "objects.image_id")
    named = refs if len(refs) == len(found) else [""] * len(found)
    kind = value.get("bbox_type", "real")
    boxes = [
        _box(image, kind, bbox, ref, f"objects.bbox[{index}]")
        for index, (image, bbox, ref) in enumerate(zip(images, found, named, strict=True))
    ]
    return refs, boxes


def _box(image: Any, kind: Any, bbox: Any, ref: str, where: str) -> Box:
    if not isinstance(kind, str) or kind not in _TYPES:
        raise UnusableError(f"unknown bbox_type: {kind!r}", "there is real, norm_1 and norm_1000", where)
    if not isinstance(image, int) or isinstance(image, bool) or abs(image) > _LARGEST:
        raise _wrong("the picture of a box is a number from 0", where)
    nested = bbox if isinstance(bbox, list) and bbox and isinstance(bbox[0], list) else [bbox]
    return Box(image, _TYPES[kind], tuple(_corners(corners, where) for corners in nested), ref)  # type: ignore[arg-type]


def _corners(corners: Any, where: str) -> Corners:
    numbers = isinstance(corners, list) and all(type(number) in (int, float) for number in corners)
    if not numbers or len(corners) != 4 or not all(abs(number) <= _LARGEST for number in corners):
        raise _wrong("a box is four numbers, x1, y1, x2, y2, or a list of such", where)
    return tuple(corners)


def _wrong(rule: str, where: str) -> UnusableError:
    return UnusableError(
        f"wrong shape of objects: {rule}", "write it as workflow/schemas/swift.schema.yaml shows", where
    )
