"""Count the tokens of every training record with the model's own template."""

from vlmflow.cli import run
from vlmflow.tokens.count import count_tokens

run(count_tokens)
