# The same commands that the README names and CI runs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test lint types bench chaos check setup clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make an environment here; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

setup: $(STAMP)

run: $(STAMP)
	@$(BIN)/orchestrator dev

test: $(STAMP)
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.main_path

# DURATION_S: of traffic; SEED: the same faults again; TOPOLOGY: standalone, sentinel or cluster.
chaos: $(STAMP)
	$(BIN)/python -m tests.support.chaos --duration-s $(or $(DURATION_S),60) --topology $(or $(TOPOLOGY),standalone) $(if $(SEED),--seed $(SEED))

check: lint types test

clean:
	rm -rf $(VENV)
