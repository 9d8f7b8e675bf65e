# make sweep: from nothing to a table that says how loss depends on attention.   make test: everything that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= quickstart
# Tests whose programs are compiled with all optimisations: exactness and memory of what users run.
AS_USERS := tests/ops tests/test_memory.py tests/test_chunks.py tests/test_losses.py

.PHONY: help install sweep test lint types unit notebooks benchmark clean

help:
	@echo "make sweep      install, fetch the text, run configs/quickstart.py, print the table (ten minutes on two cores)"
	@echo "make test       lint, types, tests, the code of the docs, the notebooks"
	@echo "make install    the virtual environment alone, from requirements.lock"
	@echo "make notebooks  execute the notebooks and keep their outputs"
	@echo "make benchmark  speed and memory against peers and limits (see docs/performance.md)"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock setup.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Hybrid needs Python 3.11 or later')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

sweep: install
	$(BIN)/python scripts/fetch_data.py shakespeare
	$(BIN)/python -m experiments.sweep --config=configs/$(STUDY).py --workdir=runs/$(STUDY)

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python scripts/fetch_data.py shakespeare
	-$(BIN)/python scripts/fetch_weights.py smollm2 minilm  # without them their tests skip, and say so
	$(BIN)/python -m pytest -n 2 --dist=worksteal --durations=15 $(addprefix --ignore=,$(AS_USERS))
	HYBRID_TESTS_COMPILED=fully $(BIN)/python -m pytest -n 2 --dist=worksteal --durations=15 $(AS_USERS)

notebooks: install
	$(BIN)/python notebooks/execute.py

benchmark: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
