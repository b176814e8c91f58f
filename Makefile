# Requires Python >= 3.11 and make. Installs into .venv only.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test lint format docs bench audit clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' Makefile

install: .venv/.installed  ## install the pinned dependencies and torchppo into .venv

train: .venv/.installed  ## train on CartPole-v1; ARGS adds overrides: make train ARGS="experiment=pendulum seed=1"
	$(BIN)/torchppo train experiment=cartpole $(ARGS)

test: .venv/.installed  ## run the tests; ARGS selects some of them: make test ARGS="-k gae"
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/.installed  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed  ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: .venv/.docs  ## build the documentation site in site/; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "built site/index.html"

bench: .venv/.bench  ## measure the speed against other libraries (hours); writes to benchmarks/
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/first_run.py

audit:  ## check the pinned packages for known vulnerabilities; needs a network
	@$(PYTHON) .ci/audit.py

clean:  ## remove caches and build outputs; keep .venv and runs
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; try: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# --no-build-isolation builds with the setuptools that requirements.lock pins. pip does not compile a package that it
# installs with -e. The link lets mypy find the package as torchppo, regardless of the name of the clone's folder.
.venv/.installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing the pinned dependencies into .venv (once, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q *.py conf envs modules pipelines
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/torchppo
	@touch $@

.venv/.docs: requirements-docs.lock .venv/.installed
	@echo "installing mkdocs into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r requirements-docs.lock
	@touch $@

.venv/.bench: .venv/.installed
	@echo "installing the other libraries into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c requirements.lock -e '.[bench]'
	@touch $@
