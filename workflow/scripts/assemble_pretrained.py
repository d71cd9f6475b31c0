"""Put what a pretraining trained into its base, as a model directory."""

from vlmflow.assemble import assemble_pretrained
from vlmflow.cli import run

run(assemble_pretrained)
