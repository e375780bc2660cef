# `make demo` and `make test` do all set-up themselves, in a local environment that is kept.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-next clean

demo: .venv/installed
	$(BIN)/patchcore train --multirun data.category=texture,object coreset.ratio=0.02 logger=csv \
	    hydra.sweep.dir=outputs/demo
	$(BIN)/patchcore report outputs/demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

# By hand: configuration and multiruns under the next generation of Hydra, OmegaConf and Optuna, which lies
# beside the environment and goes before it.
NEXT := hydra-core>=1.4.0rc3,<1.5 omegaconf>=2.4.0,<2.5 hydra-joblib-launcher>=1.4.0rc3,<1.5 \
    hydra-submitit-launcher>=1.4.0rc3,<1.5 hydra-optuna-sweeper>=1.4.0rc3,<1.5 optuna>=4.9,<6
NEXT_TESTS := tests/test_config.py tests/test_names.py tests/test_overrides.py \
    tests/test_targets.py tests/test_sweep.py

test-next: .venv/next/installed
	PYTHONPATH=.venv/next $(BIN)/python -m pytest $(NEXT_TESTS)

.venv/next/installed: .venv/installed
	rm -rf .venv/next
	$(BIN)/pip install --quiet --pre --no-deps --target .venv/next $(foreach each,$(NEXT),'$(each)')
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs multirun
