"""A model directory in the layout that its family was published in."""

from __future__ import annotations

import logging
from pathlib import Path

from vlmflow.convert import internvl, llava
from vlmflow.errors import UserError
from vlmflow.files import read_json, read_manifest, staged_directory, write_manifest
from vlmflow.provenance import write_provenance

logger = logging.getLogger(__name__)
_FAMILIES = {"internvl": internvl, "llava": llava}


def convert_official(model: Path, output: Path, official_files: Path | None = None) -> None:
    """Write the model beside the manifest ``model`` in its family's official layout; ``output`` is a manifest too.

    The files that are not weights come from ``official_files``, a directory of the official layout, or from the one
    that the model was made of.
    """
    source = read_manifest(model)
    kind = read_json(model.parent / "config.json").get("model_type")
    if kind not in _FAMILIES:
        raise UserError(
            f"a model of type '{kind}'", f"there is {', '.join(_FAMILIES)}", file=model.parent / "config.json"
        )
    family = _FAMILIES[kind]
    with staged_directory(output.parent, model) as directory:
        facts = family.to_official(model.parent, directory, official_files=official_files)
        logger.info("%s", facts)
        write_provenance(directory, {"layout": "official"}, {"model": source["hash"]}, **facts)
        write_manifest(directory, converted_from=source["hash"])
