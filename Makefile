# Needs Python >= 3.11 and make. Everything is installed into .venv; nothing outside of it is touched.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' Makefile

install: .venv/.installed  ## install the pinned dependencies and torchppo itself into .venv

train: .venv/.installed  ## train on CartPole; make train ARGS="experiment=pendulum seed=1" for anything else
	$(BIN)/torchppo train experiment=cartpole $(ARGS)

test: .venv/.installed  ## run the tests; make test ARGS="-k gae" for some of them
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/.installed  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed  ## format, and mend what can be mended by machine
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove caches and build outputs; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "torchppo needs Python 3.11 or newer, and $(PYTHON) is not; try: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The lock pins setuptools too, so the build takes it from there; the link lets mypy find the package by its name,
# whatever the clone is called.
.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing the pinned dependencies into .venv (once, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/torchppo
	@touch $@
