# What a developer does with this repository. `make` alone lists it.
# Only python3 (3.11 or later, with its venv module) has to be there before.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar on
PORT ?= 8000
MANIFEST ?= examples/01-smollm2.yaml
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

BENCH_ARGS ?=

.PHONY: help setup run model adapters test test-gpu check lint format crds bench-cpu bench-gpu bench-lora bench-pooling bench-router bench-router-peers chaos-batch clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed-up ## start the platform on this machine (PORT=8000)
	@$(BIN)/octavo up -f $(MANIFEST) --port $(PORT)

model: $(VENV)/.installed-up ## fetch SmolLM2 into the cache
	@$(BIN)/octavo models pull smollm2

adapters: $(VENV)/.installed-dev ## train two small LoRA adapters of SmolLM2 and keep them in the cache
	@$(BIN)/octavo models pull smollm2
	@$(BIN)/python -m tests.fakes.trained_adapters

setup: $(VENV)/.installed-dev ## create .venv with everything for development

# A file's tests share what they start and run in order, in one worker; in the order of their names
# the files with the longest tests (e2e) come first.
test: $(VENV)/.installed-dev ## run every test that needs no GPU and no cluster (TEST_WORKERS=0: one by one)
	@$(BIN)/octavo models pull smollm2
	@$(BIN)/octavo models pull minilm
	@$(BIN)/octavo models pull ms-marco-minilm
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-cluster: $(VENV)/.installed-dev ## test operator and chart on a real Kubernetes (docs/kubernetes.md)
	@$(BIN)/octavo models pull smollm2
	@KUBECONFIG=$$($(BIN)/python -m tests.cluster.environment) \
	  $(BIN)/python -m pytest -m cluster tests/cluster $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## check format, style, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: lint ## lint, and the tests that start no server and need no model
	@$(BIN)/python -m pytest -m "not model and not integration and not gpu and not cluster and not bench" $(PYTEST_ARGS)

format: $(VENV)/.installed-dev ## format the code and sort its imports
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

crds: $(VENV)/.installed-dev ## write the CRDs anew from the typed resources
	@$(BIN)/python -m octavo_protocol.resources.crd crds charts/octavo/crds

bench-cpu: $(VENV)/.installed-dev ## measure this machine beside Hugging Face; takes minutes
	@$(BIN)/octavo models pull smollm2
	@$(BIN)/python -m benchmarks.cpu $(BENCH_ARGS)

bench-pooling: $(VENV)/.installed-dev ## measure embeddings on this machine beside sentence-transformers
	@for model in minilm bge-small; do $(BIN)/octavo models pull $$model || exit 1; done
	@$(BIN)/python -m benchmarks.pooling $(BENCH_ARGS)

# A machine with a GPU often has a torch for its driver: without .venv, $(PYTHON) is taken as it is.
GPU_TARGETS := test-gpu bench-gpu
$(GPU_TARGETS): GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
$(GPU_TARGETS): export PYTHONPATH := client:kernels:protocol:runtime:$(PYTHONPATH)

# Without pyproject.toml, whose settings are those of plugins that such a Python may lack.
test-gpu: ## test kernels and engine on an NVIDIA GPU, with .venv or else PYTHON
	@$(GPU_PYTHON) -m pytest -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider \
	  -m gpu tests/kernels/gpu tests/gpu $(PYTEST_ARGS)

bench-gpu: ## measure an NVIDIA GPU beside vLLM, with .venv or else PYTHON; takes minutes
	@$(GPU_PYTHON) -c 'import msgspec, torch, triton, zmq' || { \
	  echo "$(GPU_PYTHON) lacks what is named above. Run make setup, or name another: make bench-gpu PYTHON=..." >&2; exit 1; }
	@$(GPU_PYTHON) -m benchmarks.gpu.engine $(BENCH_ARGS)

bench-lora: $(VENV)/.installed-dev ## measure what adapters cost a step on this machine
	@$(BIN)/octavo models pull smollm2
	@$(BIN)/python -m benchmarks.lora $(BENCH_ARGS)

bench-router: $(VENV)/.installed-dev ## measure routing (TRACE=a trace for octavo sim adds the policies)
	@$(BIN)/python -m benchmarks.router $(if $(TRACE),--trace $(TRACE)) $(BENCH_ARGS)

bench-router-peers: $(VENV)/.installed-dev ## measure the router beside others, which are installed under build/
	@$(BIN)/python -m benchmarks.router_peers $(BENCH_ARGS)

chaos-batch: $(VENV)/.installed-dev ## kill what works on batches, 50 times; takes some 20 minutes
	@$(BIN)/octavo models pull smollm2
	@$(BIN)/python -m benchmarks.batch_chaos $(BENCH_ARGS)

clean: ## remove .venv and tool caches; models stay (octavo models remove)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, or pip runs again.
$(VENV)/.installed-up: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what Octavo needs into $(VENV) (a few minutes the first time)"
	@$(PIP) torch -c constraints.txt
	@$(PIP) -e '.[up]' -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what development needs into $(VENV) (a few minutes the first time)"
	@$(PIP) torch -c constraints.txt
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $(VENV)/.installed-up $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python is missing. On Debian and Ubuntu: sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Octavo needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
