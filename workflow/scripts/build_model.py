"""Assemble one base model."""

from vlmflow.cli import run
from vlmflow.models.build import build_model

run(build_model)
