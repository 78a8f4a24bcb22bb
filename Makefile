# Each target sets up what it needs in $(VENV), on a machine that has Python 3.11 to 3.13 and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo demo-train test lint bench clean

demo: $(VENV)/.base ## make small data sets, filter and tokenize them
	$(BIN)/oxe-curate demo --out demo

demo-train: $(VENV)/.dev ## the same, then train a tiny model on it, evaluate it and ask it for an action
	$(BIN)/oxe-curate demo --out demo --train

test: $(VENV)/.dev ## the whole test suite
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## the comparisons in benchmarks/ (see benchmarks/README.md for the peers' environment)
	$(BIN)/python -m benchmarks.run $(BENCH)

clean:
	rm -rf $(VENV) demo benchmarks/data

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet --editable .
	touch $@

# The version of torch that the tests are run with, first: what else asks for torch is then content with it.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --editable '.[dev]'
	touch $@
