# Every target does its own set-up in .venv; only Python 3.11+ and make are needed.
#   make demo ARGS="--seed 3"            other pictures and texts
#   make bench ARGS="--pairs 9 --force"  options of mmspec bench
#   make matrix ARGS="--cells 500"       so many cells, drawn at random
#   make demo PYTHON=python3.12          another interpreter
#   make demo TORCH="torch==2.11.0"      another torch; pip options may follow the version
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)

BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test check matrix bench clean

help:
	@echo "make demo    the bundled model transcribes, captions and quotes, with and without drafts"
	@echo "make test    the default tests: CPU, no network"
	@echo "make check   formatting, lint and types"
	@echo "make matrix  every cell of the exactness matrix, to build/matrix.json: hours"
	@echo "make bench   what mmspec and its datastore cost; the bundled model against transformers"
	@echo "make clean   remove build outputs and caches (.venv stays)"

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p mmspec

matrix: $(INSTALLED)
	$(BIN)/python scripts/matrix.py --out build/matrix.json $(ARGS)

bench: $(INSTALLED)
	$(BIN)/mmspec bench tiny-vlm --out build/bench.json $(ARGS)
	$(BIN)/python scripts/bench_overhead.py --out build/overhead.json
	$(BIN)/python scripts/bench_score.py --out build/score.json
	$(BIN)/python scripts/bench_retrieval.py --out build/retrieval.json

# torch goes first and alone; the rest is resolved round it and the Triton that it brought, if any.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mmspec needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip list --format=freeze | grep -E '^(torch|triton)==' \
	  | cat - constraints.txt | awk -F== '!named[$$1]++' > .venv/constraints.txt
	$(BIN)/python -m pip install -c .venv/constraints.txt -e '.[dev,lora,cpu,docs,parquet,langchain,haystack]'
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find mmspec tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
