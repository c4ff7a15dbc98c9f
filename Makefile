# `make` alone lists what there is. Nothing here asks a question.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN_STAMP := $(VENV)/.cellray-run
TEST_STAMP := $(VENV)/.cellray-test
WORKERS ?= 3
BENCHMARKS := $(filter-out benchmarks/gauge.py benchmarks/rates.py,$(wildcard benchmarks/*.py)) # rates.py needs real images and hours

# By uv, which takes a third of pip's time and is fetched first where it isn't there; it doesn't know pip's own settings, so
# that pip works where it has an index or a folder of wheels of its own, and does what uv can't. (grep -q would leave pip
# with a broken pipe, which it calls an error.)
# Of pip's lines those that take time are shown; its errors come by themselves, and its status is kept in a file.
uv = $$($(PIP) config list | grep -E 'index|find-links' >/dev/null || command -v uv || { $(PIP) install -q uv && echo $(BIN)/uv; })
install = { uv="$(uv)"; test "$$uv" && $$uv pip install --python $(BIN)/python --constraint constraints.txt --editable $(1); } \
    || { { $(PIP) install --constraint constraints.txt --editable $(1); echo $$? >$(VENV)/.status; } | awk '\
    $$1 == "Downloading" && $$4 == "MB)" { size = substr($$3, 2) + 0; if (size >= 20) print "  " $$2 ", " size " MB" } \
    /^Installing collected/ { print "  installing " NF - 3 " packages" } { fflush() }'; exit $$(cat $(VENV)/.status); }

.DEFAULT_GOAL := help
.PHONY: help demo install install-test test quick acceptance gpu audit check format lint types layers bench keys constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(RUN_STAMP) ## environment, install, quickstart study, ranked table, path of the report
	$(BIN)/cellray sweep search_spaces/quickstart.yaml

install: $(RUN_STAMP) ## .venv with cellray at the versions of constraints.txt

install-test: $(TEST_STAMP) ## the same with the tools of `make check` and `make test`

# More workers than the two processors of a small machine: some of them always wait for a server or for Ray.
test: $(TEST_STAMP) ## every test, by 3 workers side by side (WORKERS=8: by 8)
	$(BIN)/python -m pytest -q -n $(WORKERS) --durations=10 -o faulthandler_timeout=600

quick: $(TEST_STAMP) ## format, lint and every test that isn't marked `slow`, in about a minute: before each commit
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

acceptance: $(TEST_STAMP) ## sweeps that lose a machine, in every way there is (root; SCENARIO=taken_back: that way only)
	@if unshare --net ip link >/dev/null 2>&1; then \
	    unshare --net $(BIN)/python -m pytest -q --durations=0 tests/acceptance $(SCENARIO:%=-k %); \
	else \
	    echo "Skipped: a network of several machines needs root, unshare and ip (Debian: util-linux, iproute2)."; \
	    test "$$CI" != true; \
	fi

# The torch that Linux gets from PyPI is built with CUDA. Lightning and MONAI's trainer are for comparison only.
gpu: $(TEST_STAMP) ## tests of an NVIDIA GPU, and its figures into benchmarks/results; without a GPU, whether they could run
	@$(PIP) install -qq --constraint constraints.txt lightning pytorch-ignite
	$(BIN)/python -m pytest -q -rs -m gpu tests/test_gpu.py
	$(BIN)/python benchmarks/training.py --device cuda --results benchmarks/results

audit: $(BIN)/python ## known weaknesses of the pinned dependencies, by pip-audit (internet)
	@$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install -qq --disable-pip-version-check pip-audit
	@$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

check: format lint types layers ## format, lint, types, import direction; each also by itself

format: $(TEST_STAMP)
	$(BIN)/ruff format --check .

lint: $(TEST_STAMP)
	$(BIN)/ruff check .

types: $(TEST_STAMP)
	$(BIN)/mypy

layers: $(TEST_STAMP)
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(TEST_STAMP) ## every benchmark, one after the other
	@missed=0; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || missed=1; done; exit $$missed

keys: $(TEST_STAMP) ## docs/keys.md anew, the page of every key of a study file
	$(BIN)/cellray schema --markdown > docs/keys.md

constraints: $(TEST_STAMP) ## rewrite constraints.txt from what .venv holds now
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@git --no-pager diff --stat constraints.txt 2>/dev/null || true

clean: ## remove caches and build leftovers; .venv and studies/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find cellray tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml or constraints.txt when something is to be installed again. They lie in
# .venv, so that they go when it goes.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing cellray into $(VENV): some minutes the first time; torch is most of it."
	@$(call install,.)
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing cellray and the test tools into $(VENV): some minutes the first time; torch is most of it."
	@$(call install,'.[test]')
	@touch $@ $(RUN_STAMP)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "cellray needs Python 3.11 or newer, but there is no '$(PYTHON)': install one, or name it as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cellray needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1): name another as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' can't make virtual environments (no module venv or ensurepip): install it, on Debian and Ubuntu with: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
