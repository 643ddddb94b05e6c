# Every target creates .venv when it is first used, and needs Python 3.11 and make. Further programs are named below.
# Settings of the environment reach the commands: GATEWAY_PORT=9000 make demo
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak fleet fuzz openapi docs console clients-tools schemathesis image sbom chart alerts connectors lock

help:  ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-15s%s\n' "$$name" "$$text"; done

demo: $(READY)  ## Run the gateway in front of a simulated Callbutton server, and print commands to try
	@$(BIN)/callbutton-gateway demo

test: $(READY)  ## Run the tests (about 20 minutes on two cores), without those whose programs are not installed
	@echo "== tests (about 20 minutes on two cores); the end lists the tests that are skipped, with the program that each needs"
	@$(BIN)/python -m pytest -q -rs --numprocesses=auto --maxprocesses=4 --dist=worksteal

lint: $(READY)  ## Run ruff and mypy
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

bench: $(READY)  ## Run the benchmarks
	@$(BIN)/python -m benchmarks.translate
	@$(BIN)/python -m benchmarks.scaling
	@$(BIN)/python -m benchmarks.resilience
	@$(BIN)/python -m benchmarks.cache --write
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.access
	@$(BIN)/python -m benchmarks.export
	@$(BIN)/python -m benchmarks.reports
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.cold

soak: $(READY)  ## Run the cache's property test for 210,000 steps, then load and faults for DURATION seconds (60)
	@echo "== 3,500 sequences of 60 steps"
	@SOAK_EXAMPLES=3500 SOAK_STEPS=60 $(BIN)/python -m pytest -q tests/cache/test_truth.py
	@echo "== load and faults"
	@$(BIN)/python -m benchmarks.soak $(or $(DURATION),60)

fleet: $(READY)  ## Run three replicas under load and faults for MINUTES (20), and 6 more; needs Debian's nginx-light
	@$(BIN)/python -m benchmarks.fleet $(or $(MINUTES),20)

fuzz: $(READY)  ## Fuzz the reply parser with RUNS inputs (2,000,000), in a separate environment
	@$(PYTHON) -m venv .venv/fuzz
	@.venv/fuzz/bin/python -m pip install --quiet -e '.[fuzz]'
	@.venv/fuzz/bin/python -m benchmarks.fuzz -artifact_prefix=.venv/fuzz/

openapi: $(READY)  ## Write openapi/openapi.yaml
	@$(BIN)/callbutton-gateway openapi > openapi/openapi.yaml
	@echo "wrote openapi/openapi.yaml"

docs: $(READY)  ## Write the generated pages of docs/
	@$(BIN)/python -m docs.generate

console:  ## Check and build the web console; needs npm
	@npm ci --silent --ignore-scripts --no-fund --no-audit --prefix gateway/api/console
	@npm run --silent --prefix gateway/api/console check
	@npm run --silent --prefix gateway/api/console build

clients-tools: $(READY)  ## Install the Python tools of tests/api/test_clients.py, which also needs Java, Go, PHP, Ruby and npm
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/requirements-clients.lock

schemathesis: $(READY)  ## Test a running gateway against the OpenAPI document with over 20,000 requests
	@SCHEMATHESIS_EXAMPLES=$${SCHEMATHESIS_EXAMPLES:-2600} $(BIN)/python -m pytest -q -rP tests/api/test_schemathesis.py

image: $(READY)  ## Build and test the image; needs root, and Debian's buildah podman runc conmon mmdebstrap
	@BUILD_IMAGE=1 $(BIN)/python -m pytest -v -s tests/deploy/test_image.py

sbom: .venv-chart/.ready  ## Write sbom.json, a CycloneDX list of the packages in the image
	@.venv-chart/bin/cyclonedx-py requirements --output-reproducible requirements.lock -o sbom.json
	@echo "wrote sbom.json"

chart: $(READY) .venv-chart/.ready  ## Test the chart with two versions of Helm, Kubernetes schemas and checkov; needs npm
	@npm ci --silent --ignore-scripts --no-fund --no-audit --prefix tests/node
	@$(BIN)/python -m pytest -v tests/deploy/test_deploy.py tests/deploy/test_chart.py

alerts: $(READY)  ## Test the alerts with promtool, the dashboard and scraping; needs Debian's package prometheus
	@$(BIN)/python -m pytest -v tests/deploy/test_alerts.py

connectors: $(READY) .venv-connectors/.ready  ## Test the connectors with dlt, a Singer target and Datasette; needs Debian's package postgresql
	@$(BIN)/python -m pytest -v tests/connectors

LOCK := uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url

lock: $(READY)  ## Update the lock files from pyproject.toml and tests/chart; compatible versions are kept
	@$(BIN)/$(LOCK) pyproject.toml --extra otel --extra mirror -o requirements.lock
	@$(BIN)/$(LOCK) pyproject.toml --extra dev --extra otel --extra mirror --extra parquet -o requirements-dev.lock
	@$(BIN)/$(LOCK) tests/chart/requirements.in -o tests/chart/requirements.lock
	@$(BIN)/$(LOCK) tests/connectors/requirements.in -o tests/connectors/requirements.lock
	@echo hatchling | $(BIN)/$(LOCK) - -o requirements-build.lock

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 is needed: make PYTHON=python3.11 demo")'
	@echo "== creating .venv (once, about a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)

.venv-chart/.ready: tests/chart/requirements.lock
	@echo "== creating .venv-chart (once, about a minute)"
	@$(PYTHON) -m venv .venv-chart
	@.venv-chart/bin/python -m pip install --quiet --require-hashes -r tests/chart/requirements.lock
	@touch .venv-chart/.ready

.venv-connectors/.ready: tests/connectors/requirements.lock
	@echo "== creating .venv-connectors (once, about a minute)"
	@$(PYTHON) -m venv .venv-connectors
	@.venv-connectors/bin/python -m pip install --quiet --require-hashes -r tests/connectors/requirements.lock
	@touch .venv-connectors/.ready
