"""Merge one adapter into the full-precision base."""

from vlmflow.cli import run
from vlmflow.merge import merge_adapter

run(merge_adapter)
