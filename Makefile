# The same commands that the README names and CI runs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

DOCKER ?= docker
IMAGE  ?= agent-orchestrator:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: run test lint types bench chaos lock image check setup clean

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

# UPGRADE=1: newer versions too, not only what pyproject.toml asks for.
lock: $(STAMP)
	$(BIN)/python -m tests.image.lock $(if $(UPGRADE),--upgrade)

# EXTRAS: of pyproject.toml, with commas; IMAGE: its name; IMAGE_ARGS: more for `docker build`; DOCKER=podman.
image:
	@command -v $(DOCKER) >/dev/null || { echo "There is no $(DOCKER): install it, or set DOCKER=podman"; exit 1; }
	@$(DOCKER) info >/dev/null 2>&1 || { echo "$(DOCKER) does not work here: is its daemon running, and may you use it?"; exit 1; }
	$(DOCKER) build --file deploy/docker/Dockerfile --tag $(IMAGE) --build-arg EXTRAS="$(EXTRAS)" --build-arg REVISION="$$(git rev-parse HEAD)" --build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" $(IMAGE_ARGS) .

check: lint types test

clean:
	rm -rf $(VENV)
