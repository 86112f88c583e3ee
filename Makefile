# `make demo` and `make test` are all that a newcomer needs; both work from a fresh clone with Python >= 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A container that forbids compiled files would have every process compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: demo install test test-slow test-network lint format types clean

demo: $(VENV)/.installed
	$(BIN)/python -m pipeline

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is required, found " + sys.version.split()[0] + "; run make with PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# Python compiles what is imported when it first is; compiling all of it would double the time to install.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q --no-compile -e . -c constraints.txt
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q --no-compile -e '.[test]' -c constraints.txt
	touch $(VENV)/.installed $@

test: $(VENV)/.installed-test lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'slow and not gpu and not network'

test-network: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'network and not gpu'

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache .mypy_cache *.egg-info
