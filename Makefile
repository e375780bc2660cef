# `make demo` and `make test` do all set-up themselves, in a local environment that is kept.
PYTHON ?= python3
# Build of PyTorch, as uv names it: cpu leaves out the CUDA libraries, cu128 and others choose theirs.
# Empty: as pip finds it, on Linux with CUDA libraries.
TORCH ?=
# File of exact versions: requirements.lock, or empty for the newest that are allowed.
LOCK ?=
BIN := .venv/bin
FIX := $(if $(LOCK),--constraint $(LOCK))
INSTALL := $(if $(TORCH),$(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH),$(BIN)/pip install) \
    --quiet $(FIX)

.PHONY: demo test test-next docs notebooks lock audit clean

demo: .venv/installed
	$(BIN)/patchcore train --multirun data.category=texture,object coreset.ratio=0.02 logger=csv \
	    hydra.sweep.dir=outputs/demo

test: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

# By hand: configuration and multiruns under the next generation of Hydra, OmegaConf and Optuna, which lies
# beside the environment and goes before it.
NEXT := hydra-core>=1.4.0rc3,<1.5 omegaconf>=2.4.0,<2.5 hydra-joblib-launcher>=1.4.0rc3,<1.5 \
    hydra-submitit-launcher>=1.4.0rc3,<1.5 hydra-optuna-sweeper>=1.4.0rc3,<1.5 optuna>=4.9,<6
NEXT_TESTS := tests/test_config.py tests/test_names.py tests/test_overrides.py \
    tests/test_targets.py tests/test_sweep.py tests/test_yaml_text.py

test-next: .venv/next/installed
	PYTHONPATH=.venv/next $(BIN)/python -m pytest $(NEXT_TESTS)

.venv/next/installed: .venv/developed
	rm -rf .venv/next
	$(BIN)/pip install --quiet --pre --no-deps --target .venv/next $(foreach each,$(NEXT),'$(each)')
	touch $@

docs: .venv/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "documentation: site/index.html"

# Run the notebooks again and keep what they show.
notebooks: .venv/installed
	$(if $(TORCH),$(BIN)/pip install --quiet uv)
	$(INSTALL) --editable '.[notebooks]'
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url \
	    --extra dev --extra faiss-gpu --no-annotate --custom-compile-command 'make lock' \
	    --output-file requirements.lock pyproject.toml

# Known vulnerabilities of the versions in requirements.lock.
DATABASE := https://api.osv.dev
AUDIT := .venv/audit/bin

audit: .venv/audit/installed
	@if $(AUDIT)/python -c "import requests; requests.head('$(DATABASE)', timeout=20)" 2>/dev/null; then \
	    $(AUDIT)/pip-audit --vulnerability-service osv --no-deps --disable-pip --requirement requirements.lock; \
	else \
	    echo "audit: $(DATABASE) cannot be reached, so requirements.lock was not checked"; \
	fi

.venv/audit/installed:
	$(PYTHON) -m venv .venv/audit
	$(AUDIT)/pip install --quiet 'pip-audit>=2.9,<3'
	touch $@

.venv/installed: pyproject.toml
	@echo "setting up .venv; on Linux PyTorch comes with CUDA libraries: about 6 GB in all,"
	@echo "less than 2 GB without them: make $(or $(MAKECMDGOALS),demo) TORCH=cpu"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip $(if $(TORCH),uv)
	$(INSTALL) --editable .
	@du -sh .venv
	touch $@

.venv/developed: .venv/installed
	$(if $(TORCH),$(BIN)/pip install --quiet uv)
	$(INSTALL) --editable '.[dev]'
	touch $@

.venv/documented: .venv/installed
	$(if $(TORCH),$(BIN)/pip install --quiet uv)
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv outputs multirun site
