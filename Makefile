# make train, make test: each sets up .venv by itself, and needs nothing but Python 3.11 or newer.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
READY := $(VENV)/.ready

.PHONY: train test check clean

train: $(READY)
	$(VENV)/bin/python train.py $(ARGS)

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
