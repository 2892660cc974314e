# `make demo` and `make test` make their own virtual environment in $(VENV) and install what they need with tested pins.
# PYTHON must be 3.11 or newer: `make demo PYTHON=python3.12` (remove $(VENV) to change it later).
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/digits

BIN := $(VENV)/bin
# Some environments forbid Python to keep the bytecode of what it imports, which is a second of each process.
unexport PYTHONDONTWRITEBYTECODE
# The newest pins a Python can use: 3.11 has its own, everything later shares those of 3.12.
PINS = requirements/$(shell $(BIN)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt
# Python compiles what is imported; pip would compile every file.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(PINS)

# A process for each core; each takes whole files, so that tests of one file share what they compile. A crash ends the run.
WORKERS = --numprocesses=auto --dist=loadfile --max-worker-restart=0

.PHONY: demo docs report test types quick-tests test-slow clean

# All 45 pairs of the embedded digits: 1NN beside TRADES.
demo: $(VENV)/.demo-installed
	$(BIN)/python -m experiments.main --config=configs/binary_tasks.py:digits --workdir=$(WORKDIR)

# Most time of the tests that are not slow is compilation, so they do without most of its optimizations and without the newer of
# XLA's two ways of writing loops for CPUs, which takes twice as long to compile; the slow ones compile as users do. What was
# compiled is kept for the next run.
QUICK = JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_cpu_use_fusion_emitters=false \
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3

# Lint, then types beside the tests that are not slow.
test: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs=2 types quick-tests

types: $(VENV)/.test-installed
	$(BIN)/mypy nn_adv experiments configs

quick-tests: $(VENV)/.test-installed
	$(QUICK) $(BIN)/python -m pytest -q -m "not slow" $(WORKERS) --durations=15

test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -q -m slow $(WORKERS) --durations=15

# README.md and the pages of docs/ that have figures, from the rows that are kept in results/.
report: $(VENV)/.demo-installed
	$(BIN)/python -m experiments.documents

# The documents as a site, in build/site; a broken link is an error.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

$(VENV)/.docs-installed: setup.py $(wildcard requirements/*.txt) | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.demo-installed: setup.py $(wildcard requirements/*.txt) | $(BIN)/python
	@echo "Installing into $(VENV) (a minute or two, once)"
	$(INSTALL) --editable '.[experiments]'
	@touch $@

$(VENV)/.test-installed: setup.py $(wildcard requirements/*.txt) | $(BIN)/python
	@echo "Installing into $(VENV) (a minute or two, once)"
	$(INSTALL) --editable '.[test]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("PYTHON must be 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
