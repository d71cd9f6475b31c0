# make demo   the whole pipeline on this machine: no GPU, no conda, no root; about 8 minutes after installation
# make test   lint, types, unit tests, dry runs of every recipe, the tiny recipe end to end, killed trainings
.PHONY: demo tiny test test-slow test-slurm test-browser lint format pins docs rulegraph bench-data
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1

demo: .venv/complete
	@snakemake
	@python workflow/scripts/print_headline.py --comparison results/report/digits/comparison.json

tiny: .venv/complete
	@snakemake --configfile config/recipes/tiny.yaml
	@python workflow/scripts/print_headline.py --comparison results/tiny/report/tiny/comparison.json

test: lint
	pytest

# What takes minutes: all ways of sharing a training among processes, killed and continued
test-slow: .venv/complete
	pytest -m slow

# Through a real Slurm that the tests start and stop, as root; CONTRIBUTING.md
test-slurm: .venv/complete
	pytest -m slurm tests

# Pages in a real Chromium or Chrome, which has to be installed (Debian: apt install chromium)
test-browser: .venv/complete
	pytest -m browser tests

lint: .venv/complete
	ruff check
	ruff format --check
	mypy
	snakefmt --check Snakefile workflow/rules
	snakemake --lint

format: .venv/complete
	ruff check --fix
	ruff format
	snakefmt Snakefile workflow/rules

# Speed of the data stage against plain loading, plain decoding and plain rendering; figures in docs/benchmarks.md
bench-data: .venv/complete
	python benchmarks/data_records.py
	python benchmarks/data_images.py
	python benchmarks/tokens.py

# Refresh requirements.txt, envs/controller.txt and envs/*.yaml from the direct dependencies in envs/*.in
pins:
	python3 envs/pin.py

# docs/config.md from the schema, and the picture of the workflow in the README
docs: rulegraph
	python docs/make_config_reference.py

rulegraph: .venv/complete
	python docs/rulegraph.py

.venv/complete: requirements.txt
	@bash envs/make_venv.sh
