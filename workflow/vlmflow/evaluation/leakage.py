"""The same picture in the training data and in an evaluation would make any score worthless: found by content hash."""

from __future__ import annotations

from pathlib import Path

from vlmflow.data.records import read_records
from vlmflow.errors import UserError

_NAMED = 5  # ids that the message names


def shared_pictures(train: list[Path], test: Path) -> dict[str, str]:
    """SHA-256 of each picture of ``test`` that is in the training data too -> the first test record that shows it."""
    trained = {image.sha256 for path in train for record in read_records(path) for image in record.images}
    shared: dict[str, str] = {}
    for record in read_records(test):
        for image in record.images:
            if image.sha256 in trained:
                shared.setdefault(image.sha256, record.id)
    return shared


def refuse_shared_pictures(train: list[Path], test: Path) -> None:
    """Raise :class:`UserError` when a picture is in the training data and in the evaluation."""
    shared = list(shared_pictures(train, test).values())
    if shared:
        named = ", ".join(shared[:_NAMED]) + (", ..." if len(shared) > _NAMED else "")
        raise UserError(
            f"{len(shared)} pictures are in the training data and in the evaluation (records {named})",
            "give both data sets the same split seed and shares, so that a picture falls on the same side in both",
            file=test,
        )
