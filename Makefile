# Each target installs what it needs; only Python 3.11 (or newer) and make must be present.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
UV ?= uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make pins" $(UPGRADE)

# Where bytecode may not be written, every process that a test starts compiles what it imports, and each worker every test.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint reference report format pins conformance bench soak abuse clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/ready: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/ready ## run WADM on simulated exchanges, on port 8920; needs no network
	@$(BIN)/wadm-mcp serve --demo

test: $(VENV)/ready ## run the tests
	$(BIN)/python -m pytest -q -n 4 --dist worksteal

coverage: $(VENV)/ready ## run the tests and measure which code they execute; fails below fail_under in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n 4 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/ready ## ruff, format check, import contract, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

reference: $(VENV)/ready ## generate the pages and the snapshot that come from the code
	$(BIN)/python -m tests.reference
	$(BIN)/python -m tests.evaluation

report: $(VENV)/ready ## generate the example report from the demo
	$(BIN)/python docs/report.py

format: $(VENV)/ready ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pins: ## write requirements*.txt from pyproject.toml, with hashes; needs uv. Versions stay unless UPGRADE=--upgrade
	$(COMPILE) pyproject.toml --output-file requirements.txt
	$(COMPILE) --group build --constraint requirements.txt --output-file requirements-build.txt
	$(COMPILE) pyproject.toml --all-extras --group build --constraint requirements.txt --constraint requirements-build.txt \
		--output-file requirements-dev.txt

conformance: $(VENV)/ready ## the official MCP suite, the Inspector, mcp-remote and the tool-definition linter
	$(BIN)/python -m pytest -q tests/conformance

$(PEERS)/ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@

bench: $(VENV)/ready $(PEERS)/ready ## measure the hot path, the cache, the import of a day, every tool, and recording compared with cryptofeed
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.history
	$(BIN)/python -m benchmarks.tools --write
	$(BIN)/python -m benchmarks.recording

soak: $(VENV)/ready ## run the fault, kill and outage tests at full rate, about 90 minutes; WADM_SOAK_SEED=2 for other faults
	WADM_SOAK=1 $(BIN)/python -m pytest -q -s tests/soak tests/end_to_end/test_production_store.py tests/collection/test_listing_refresher.py

abuse: $(VENV)/ready ## attack servers that it starts, about 15 minutes; writes the verdicts to abuse.md; WADM_ABUSE_SEED=2 for other requests
	WADM_ABUSE=1 WADM_ABUSE_TABLE=$${WADM_ABUSE_TABLE:-abuse.md} $(BIN)/python -m pytest -q tests/abuse

clean: ## remove everything that the targets created
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .ruff_cache .coverage* abuse.md
