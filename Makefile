# Every target makes .venv on first use; nothing but Python 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench soak openapi lock

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
	@$(BIN)/python -m benchmarks.translate
	@$(BIN)/python -m benchmarks.ledger

soak: $(READY)  ## 200,000 steps and more of the ledger's truth test
	@echo "== 3,500 sequences of 60 steps"
	@SOAK_EXAMPLES=3500 SOAK_STEPS=60 $(BIN)/python -m pytest -q tests/test_truth.py

openapi: $(READY)
	@$(BIN)/callbutton-gateway openapi > openapi/openapi.yaml
	@echo "wrote openapi/openapi.yaml"

LOCK := uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url pyproject.toml

lock: $(READY)  ## both lock files from pyproject.toml; versions that fit are kept
	@$(BIN)/$(LOCK) -o requirements.lock
	@$(BIN)/$(LOCK) --extra dev --extra otel -o requirements-dev.lock

$(READY): requirements-dev.lock pyproject.toml
	@echo "== making .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)
