# Everything a developer needs, the same at home and in CI. Each target makes what it needs first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
ARGS ?=

# Small machines thrash when torch's threads of several processes compete for the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test check bench soak format clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z.]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.ready: pyproject.toml .ci/system-packages
	@.ci/system-packages build
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and the other dependencies: a few minutes on the first run"
	@[ -t 1 ] || quiet=--quiet; \
	$(RUN)/pip install $$quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv: $(VENV)/.ready  ## the virtual environment with everything installed

demo: $(VENV)/.ready  ## run the whole network on this machine: make demo ARGS="--nodes 3"
	$(RUN)/specedge-demo $(ARGS)

check: $(VENV)/.ready  ## format, lint, types, architecture
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports

PURE_TESTS := tests/test_noise.py tests/test_gain.py tests/tree tests/wire tests/scheduler tests/ledger/test_credit.py tests/engine/test_packing.py
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
COVERED := --cov --cov-report=term-missing:skip-covered --cov-fail-under=100

test: $(VENV)/.ready  ## all tests; the pure core must be covered to the last branch
	@.ci/system-packages test
	$(RUN)/python -m pytest -q $(PARALLEL) $(COVERED) $(PURE_TESTS) $(ARGS)
	$(RUN)/python -m pytest -q -m "not soak and not alone" $(PARALLEL) $(addprefix --ignore=,$(PURE_TESTS)) $(ARGS)
	$(RUN)/python -m pytest -q -m "alone and not soak" $(ARGS)

bench: $(VENV)/.ready  ## benchmarks: make bench ARGS="pipeline --json FILE"
	$(RUN)/python -m tests.benchmarks $(ARGS)

soak: $(VENV)/.ready  ## the long tests
	@.ci/system-packages test
	HYPOTHESIS_PROFILE=soak $(RUN)/python -m pytest -q --schedule-seed=$(shell date +%s) tests/swarm tests/soak $(ARGS)
	$(RUN)/python -m tests.benchmarks pipeline --all --json figures.json --markdown figures.md --svg figures.svg

format: $(VENV)/.ready  ## format the code
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

clean:  ## remove what make made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
