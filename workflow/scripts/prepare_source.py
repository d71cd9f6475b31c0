"""Turn the raw files of one source into pictures and annotations."""

from vlmflow.cli import run
from vlmflow.prepare import prepare_source

run(prepare_source)
