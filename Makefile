# Installs what is missing, once, and starts things. All settings of a run are Hydra's: make train ARGS="seed=1"

PYTHON ?= python3
EXTRAS ?= dev
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
BASE_STAMP := $(VENV)/.installed-base
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
NEEDS := pyproject.toml constraints.txt
SPECIAL := bubblewrap or docker or slurm or vllm or java or browser or network or readme or kill or gpu or slow

.DEFAULT_GOAL := help
.PHONY: help train test lint docs install-dev clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

train: $(BASE_STAMP)  ## Train; ARGS="key=value ..." are Hydra overrides
	$(BIN)/dagger-train $(ARGS)

test: $(DEV_STAMP)  ## Run the tests that need nothing but this machine's CPU
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadgroup -m "not ($(SPECIAL))" $(ARGS)

lint: $(DEV_STAMP)  ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(DOCS_STAMP)  ## Build the site below build/docs; warnings are errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

install-dev: $(DEV_STAMP)  ## Install what test and lint need (test and lint do so themselves)

clean:  ## Remove the virtual environment and all caches; runs in outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find dagger_exp tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv makes, so a half-made environment is made again.
$(BIN)/pip:
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(BASE_STAMP): $(NEEDS) | $(BIN)/pip
	@echo "Installing dagger-exp into $(VENV); this happens once and takes some minutes"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(NEEDS) | $(BIN)/pip
	@echo "Installing dagger-exp[$(EXTRAS)] into $(VENV); this happens once and takes some minutes"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(BASE_STAMP) $@

$(DOCS_STAMP): $(NEEDS) | $(BIN)/pip
	@echo "Installing dagger-exp[docs] into $(VENV); this happens once"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $(BASE_STAMP) $@
