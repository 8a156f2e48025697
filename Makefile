# Each target sets up what it needs, skips what is there, and says what it does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMFYUI := .cache/ComfyUI

.PHONY: help setup check test slow demo bench clean
help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready  ## A virtual environment, and a ComfyUI unless COMFYUI_PATH names yours

$(VENV)/ready: pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) COMFYUI=$(COMFYUI) scripts/setup.sh
	@touch $@

check: setup  ## Format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/size.py

test: setup  ## All tests, on the CPU, with a real ComfyUI and real workers: two files at once
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup  ## The tests that take long: fifty runs of chaos, hosts in network namespaces (as root), rented machines, guides
	$(BIN)/python -m pytest -m slow

demo: setup  ## Two workers draw 16 pictures from 4 prompts into output/demo/
	$(BIN)/python demo/demo.py

bench: setup  ## The benchmarks, one JSON line each
	@for name in dispatch transport fanout sequence cfg batch sampling queue balance idle url chaos tiles blend vae video; do $(BIN)/comfyfleet bench $$name --json; done

clean:  ## Remove what the targets made
	rm -rf $(VENV) .cache output .pytest_cache .mypy_cache .ruff_cache .hypothesis
