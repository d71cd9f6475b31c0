"""Start the page on which two models answer side by side."""

import sys

from vlmflow.main import main

main(["app", *sys.argv[1:]])
