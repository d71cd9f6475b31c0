#!/usr/bin/env bash
# Builds .venv from requirements.txt with the first usable Python; .venv/complete marks that it got to the end.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'error: %s\n    -> %s\n' "$1" "$2" >&2; exit 1; }

PATH=${PATH//"$PWD/.venv/bin:"/} # the Makefile puts it first, and .venv may be made anew below
modern='import sys; sys.exit(sys.version_info < (3, 11))'
python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c "$modern" 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "no Python 3.11 or newer (python3 is $(python3 --version 2>&1 || true))" \
    "install one (Debian: apt install python3.11 python3.11-venv) or name it: make demo PYTHON=/path/to/python3.12"

if ! .venv/bin/python -c "import pip; $modern" 2>/dev/null; then
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || fail "cannot make a virtual environment" "Debian and Ubuntu: apt install python3-venv"
fi
echo "Installing requirements.txt into .venv; this takes a few minutes once"
# DeepSpeed compiles nothing at install time; what it needs it builds when first used.
DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
    fail "pip could not install requirements.txt (its message is above)" \
        "check the network and the package index, then run the same command again"
# The command `vlmflow`, from this folder: setuptools is there already, nothing is fetched.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ||
    fail "pip could not install the command vlmflow (its message is above)" \
        "check that this folder can be written to, then run the same command again"
touch .venv/complete
