# `make demo` and `make test` do all set-up themselves, in a local environment that is kept.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed
	$(BIN)/patchcore train --multirun data.category=texture,object coreset.ratio=0.02 logger=csv \
	    hydra.sweep.dir=outputs/demo
	$(BIN)/patchcore report outputs/demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs multirun
