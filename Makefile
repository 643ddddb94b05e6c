# Every target makes .venv on first use; nothing but Python 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench soak schemathesis openapi docs image chart alerts clients-tools lock

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
	@$(BIN)/python -m benchmarks.scaling
	@$(BIN)/python -m benchmarks.resilience
	@$(BIN)/python -m benchmarks.cache --write
	@$(BIN)/python -m benchmarks.access
	@$(BIN)/python -m benchmarks.export
	@$(BIN)/python -m benchmarks.serving

soak: $(READY)  ## 200,000 steps and more of the cache's truth test; then load and faults for DURATION seconds
	@echo "== 3,500 sequences of 60 steps"
	@SOAK_EXAMPLES=3500 SOAK_STEPS=60 $(BIN)/python -m pytest -q tests/cache/test_truth.py
	@echo "== load and faults"
	@$(BIN)/python -m benchmarks.soak $(or $(DURATION),60)

.PHONY: fuzz
fuzz: $(READY)  ## RUNS inputs (2,000,000 unless said) to the reader of replies, in an environment of its own
	@$(PYTHON) -m venv .venv/fuzz
	@.venv/fuzz/bin/python -m pip install --quiet -e '.[fuzz]'
	@.venv/fuzz/bin/python -m benchmarks.fuzz -artifact_prefix=.venv/fuzz/

openapi: $(READY)
	@$(BIN)/callbutton-gateway openapi > openapi/openapi.yaml
	@echo "wrote openapi/openapi.yaml"

docs: $(READY)  ## the pages of docs/ that are made from the code
	@$(BIN)/python -m docs.generate

clients-tools: $(READY)  ## what tests/api/test_clients.py needs besides Java, Go and npm
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/requirements-clients.lock

schemathesis: $(READY)  ## the contract against a running gateway: 20,000 cases and more
	@SCHEMATHESIS_EXAMPLES=$${SCHEMATHESIS_EXAMPLES:-2600} $(BIN)/python -m pytest -q -rP tests/api/test_schemathesis.py

image: $(READY)  ## the image, built and run for real: root, and Debian's buildah podman runc conmon mmdebstrap
	@BUILD_IMAGE=1 $(BIN)/python -m pytest -v -s tests/deploy/test_image.py

chart: $(READY) .venv-chart/.ready  ## the chart by both Helms, the schemas of two Kubernetes, checkov, and our own asserts
	@npm ci --silent --ignore-scripts --no-fund --no-audit --prefix tests/node
	@$(BIN)/python -m pytest -v tests/deploy/test_deploy.py tests/deploy/test_chart.py

alerts: $(READY)  ## alerts played by promtool, dashboard, a Prometheus that scrapes; Debian's package prometheus
	@$(BIN)/python -m pytest -v tests/deploy/test_alerts.py

LOCK := uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url

lock: $(READY)  ## the lock files, from pyproject.toml and tests/chart; versions that fit are kept
	@$(BIN)/$(LOCK) pyproject.toml --extra otel -o requirements.lock
	@$(BIN)/$(LOCK) pyproject.toml --extra dev --extra otel -o requirements-dev.lock
	@$(BIN)/$(LOCK) tests/chart/requirements.in -o tests/chart/requirements.lock
	@echo hatchling | $(BIN)/$(LOCK) - -o requirements-build.lock

$(READY): requirements-dev.lock pyproject.toml
	@echo "== making .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(READY)

.venv-chart/.ready: tests/chart/requirements.lock
	@echo "== making .venv-chart (once, about a minute)"
	@$(PYTHON) -m venv .venv-chart
	@.venv-chart/bin/python -m pip install --quiet --require-hashes -r tests/chart/requirements.lock
	@touch .venv-chart/.ready
