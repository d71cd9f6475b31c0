"""Write a model directory in the official layout of its family."""

from vlmflow.cli import run
from vlmflow.convert.official import convert_official

run(convert_official)
