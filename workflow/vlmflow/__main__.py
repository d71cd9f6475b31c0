"""`python -m vlmflow`: the command where it is not installed."""

from vlmflow.main import main

main()
