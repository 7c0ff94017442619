PYTHON ?= python3
BIN := .venv/bin
# DeepSpeed compiles its CPU kernels with the `ninja` it finds on the path
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow faults check bench bench-gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed  ## the whole path on a small model, on this machine
	$(BIN)/python examples/security/demo.py

test: .venv/.installed  ## the tests that a laptop passes in minutes, style and types among them
	$(BIN)/python -m pytest

test-slow: .venv/.installed  ## the tests that take longer
	$(BIN)/python -m pytest -m "slow and not gpu"

faults: .venv/.installed  ## break small runs at random moments for half an hour, and count what was survived
	$(BIN)/python -m tests.faults.injector --save

check: .venv/.installed  ## style, types and layers alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/.installed  ## ratios against peers and limits, measured here
	$(BIN)/python benchmarks/run.py

bench-gpu: .venv/.installed  ## tokens a second, MFU and memory on one GPU, against TRL
	$(BIN)/python benchmarks/gpu_throughput.py --save

clean:  ## remove caches and what was built; leaves .venv and runs
	rm -rf build dist src/*.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
