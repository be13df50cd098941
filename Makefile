# Everything a user or a developer types. `make` alone lists it.
# Needs only Python 3.11+ (PYTHON=python3.12 names another one); nothing is installed outside .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
ARGS ?=
CASES ?= 10000
MINUTES ?= 10
TABLES ?= facts consolidation language mqar needles babi formal intents translation ablation clocks optimizers cost

# Optional: address of a package index that carries PyTorch's CPU build. On Linux without it pip may take
# the CUDA build, about 3 GB; it works on a CPU just the same.
TORCH_INDEX ?=
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1)

.DEFAULT_GOAL := help
.PHONY: help serve test lint faults chaos fuzz soak load bench eval results train throughput clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.installed  ## set everything up and serve on 127.0.0.1:8000 (ARGS="--port 9000 …")
	@exec $(BIN)/hope serve $(ARGS)

test: lint  ## ruff, mypy and the tests in two processes (ARGS="-k laws" narrows the tests, "-n 0" is for debuggers)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff and mypy only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

faults: $(VENV)/.installed-dev  ## the faults of stores, processes and clocks, tried with real ones: minutes
	@$(BIN)/python -m pytest -q tests/faults $(ARGS)

fuzz: $(VENV)/.installed-dev  ## generated requests, frames and histories, the server's memory watched (CASES=100000)
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.fuzz --cases $(CASES) $(ARGS)

soak: $(VENV)/.installed-dev  ## mixed traffic on one server that is stopped and killed now and then (MINUTES=10)
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

load: $(VENV)/.installed-dev  ## 550 websockets on one server, and what it adds to the engine's own time
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.bench.load $(ARGS)

chaos: $(VENV)/.installed-dev  ## traffic on three replicas that are killed at random (ARGS="--minutes 3 --seed 1")
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.chaos $(ARGS)

bench: $(VENV)/.installed  ## speed of reading, speaking and committing on this machine
	@$(BIN)/hope bench $(ARGS)

eval: $(VENV)/.installed  ## recall of the shipped checkpoint on facts it never saw
	@$(BIN)/hope eval $(ARGS)

results: $(VENV)/.installed-dev  ## every table of docs/RESULTS.md: hours; resumes (DATA=folder, TABLES="mqar cost")
	@for table in $(TABLES); do $(BIN)/hope eval $$table --data $(DATA) $(ARGS) || exit 1; done
	@$(BIN)/hope eval render

train: $(VENV)/.installed  ## train a checkpoint (DATA=folder of texts, ARGS="--help" for the rest)
	@$(BIN)/hope train --data $(DATA) $(ARGS)

throughput: $(VENV)/.installed  ## what compiling, bfloat16 and checkpointing do to training here
	@$(BIN)/hope train --throughput --threads 1 $(ARGS)

clean:  ## remove the environment and every cache; sessions in data/ stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis *.egg-info
	rm -rf clients/typescript/build clients/typescript/dist clients/typescript/node_modules
	find engine server tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		"Name a newer one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once; PyTorch is large) …"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once; PyTorch is large) …"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $@ $(VENV)/.installed
