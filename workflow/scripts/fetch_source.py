"""Download one source and check it."""

from vlmflow.cli import run
from vlmflow.fetch import fetch_source

run(fetch_source)
