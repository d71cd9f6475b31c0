"""Download one source and check it."""

import os

from vlmflow import secrets
from vlmflow.cli import run
from vlmflow.fetch import fetch_source

secrets.take_back(os.environ)
run(fetch_source)
