# Every target makes .venv on first use; nothing but Python 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench openapi

demo: $(READY)  ## simulator and gateway together, with commands to try
	@$(BIN)/callbutton-gateway demo

test: $(READY)
	@echo "== tests"
	@$(BIN)/python -m pytest -q

lint: $(READY)
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python benchmarks/translate.py

openapi: $(READY)
	@$(BIN)/callbutton-gateway openapi > openapi/openapi.yaml
	@echo "wrote openapi/openapi.yaml"

$(READY): requirements-dev.lock pyproject.toml
	@echo "== making .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)
