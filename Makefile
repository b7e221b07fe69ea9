# Two commands to know: `make demo` and `make test`. Everything lives in .venv; nothing else on the machine is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check stress lab bench widgets clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP) ## capture, store, analyse and show the bundled models; writes out/tour.html
	$(BIN)/activarium demo

test: $(STAMP) ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP) ## the fast part: tests without browser, stress and slow ones; lint; which way imports point
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not browser and not stress and not slow and not gpu"
	$(BIN)/ruff check .
	$(BIN)/lint-imports

stress: $(STAMP) ## what is repeated on purpose: captures killed at sixty random moments, every step of a write
	$(BIN)/python -m pytest -m stress

lab: $(STAMP) ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(STAMP) ## speed, as ratios in one process; writes out/bench.json
	$(BIN)/python -m activarium.bench

widgets: ## rebuild the committed widget bundles (needs node)
	cd widgets && npm ci && npm run check && npm test && npm run build

clean: ## remove the environment, caches and out/
	rm -rf $(VENV) out .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find toolkit tests data -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that nothing else decides which build of it is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "activarium needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,cluster,dev]'
	@touch $@
