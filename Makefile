# Two commands set everything up on a fresh machine: `make demo` and `make test`. Both need only python3 >= 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN := .venv-train
ARGS ?=
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal

# Tests import onnxruntime directly too, and it would tell its maker.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test test-fast test-train test-guests check bench lock clean

demo: $(VENV)/.demo
	@$(BIN)/edge-runtime demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

# Nightly: emulated machines, built from Debian's packages; about a minute and 300 MB below GUESTS. Needs qemu-system-arm and apt-get.
GUESTS ?= $(HOME)/.cache/edge-runtime-guests

test-guests: $(VENV)/.dev
	EDGE_GUESTS=$(GUESTS) $(BIN)/python -m pytest tests/guests

# What `make test` skips for want of torch and scikit-learn, in an environment of its own.
test-train: $(TRAIN)/.ready
	@$(TRAIN)/bin/python -c 'import sklearn, torch'
	$(TRAIN)/bin/python -m pytest -n 2 tests/models/quantize tests/models/test_zoo_digits.py $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev
	$(BIN)/edge-runtime bench $(ARGS)

lock: $(VENV)/.dev
	$(BIN)/python packaging/lock.py

clean:
	rm -rf $(VENV) $(TRAIN) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edge-runtime needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# A stamp is newer than the lock it installed, so an updated lock is installed again. The dev set holds all that the demo needs.
$(VENV)/.demo: pyproject.toml requirements/demo.lock | $(BIN)/python
	@test -e $(VENV)/.dev || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/demo.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements/dev.lock | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.demo

$(TRAIN)/.ready: pyproject.toml requirements/dev.lock requirements/train.txt
	@$(PYTHON) -m venv $(TRAIN)
	@$(TRAIN)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(TRAIN)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/train.txt
	@$(TRAIN)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
