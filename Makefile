# `make demo` and `make test` are all a fresh machine needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A part of the ladder, and where its runs go.
DEMO ?= experiments/sweeps/cpu_ladder.py:demo
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?=
FAULTS_ARGS ?=
# The TPU compiler, apart from $(VENV): installed there, it would make JAX look for TPUs wherever it runs.
LIBTPU := .libtpu
# What the tests of real engines need beside $(VENV): packages of the system, and packages of pip. Without them these
# tests are skipped and say why.
ENGINES_APT := slurm-wlm munge
ENGINES_PIP := gcp-storage-emulator moto[server]
# MkDocs and what it needs besides $(VENV), apart from it: nothing else uses them.
MKDOCS := .mkdocs

# -qq: only errors; pip's notices about its own version or unused indexes help nobody here.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help setup engines demo test test-fast faults plan-check lint format docs site wheel clean

help:
	@echo "make setup      create $(VENV) with the locked dependencies and this package"
	@echo "make demo       train a ladder of sizes on the embedded books, fit its scaling law, write the report"
	@echo "make test       all tests"
	@echo "make test-fast  the tests that are not marked slow"
	@echo "make engines    install what the tests of real engines need ($(ENGINES_APT) $(ENGINES_PIP)); needs root"
	@echo "make faults     kill, damage, fill, freeze: the fault matrix, with a table (FAULTS_ARGS='--only kill')"
	@echo "make plan-check compile small steps with the TPU's compiler and compare with recorded figures"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff mend what it can"
	@echo "make docs       write docs/config.md and docs/corpus_knobs.md, the lists of all knobs"
	@echo "make site       build the documentation site in site/, links checked"
	@echo "make wheel      write dist/scaling-*.whl, which has the experiments in it"
	@echo "make clean      remove $(VENV), $(LIBTPU), $(MKDOCS), caches and build output (never runs/)"

setup: $(STAMP)
	@:

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "make: needs Python 3.11 or newer, %s is %d.%d; give another with make PYTHON=python3.12" \
	  % (sys.executable, *sys.version_info[:2]))'
	@echo "Setting up $(VENV) (about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

engines: setup
	@test -z "$(ENGINES_PIP)" || echo "Installing $(ENGINES_PIP) into $(VENV) for the tests of object stores ..."
	@test -z "$(ENGINES_PIP)" || $(PIP) install $(ENGINES_PIP)
	@test "$$(id -u)" = 0 && command -v apt-get > /dev/null || \
	  { echo "make engines: needs root and apt-get; without them the tests of real engines are skipped"; exit 1; }
	@echo "Installing $(ENGINES_APT) for the tests of real engines ..."
	@apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(ENGINES_APT) > /dev/null

demo: setup
	@$(BIN)/scaling sweep --config=$(DEMO) --config.workdir=$(DEMO_DIR)
	@$(BIN)/scaling report $(DEMO_DIR)

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: setup
	$(BIN)/python -m pytest -m fast $(PYTEST_ARGS)

# From the checkout's root, since tests/ is no part of the package.
faults: setup
	@$(BIN)/python -m tests.faults $(FAULTS_ARGS)

$(LIBTPU)/.installed: requirements-plan.lock | setup
	@echo "Setting up the TPU's compiler in $(LIBTPU) (half a minute, 700 MB) ..."
	@rm -rf $(LIBTPU)
	@$(PIP) install --no-deps --target $(LIBTPU) -r requirements-plan.lock
	@touch $@

plan-check: setup $(LIBTPU)/.installed
	PYTHONPATH=$(LIBTPU) $(BIN)/python -m pytest -n 0 -rs tests/plan/test_compiler.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/scaling config --describe > docs/config.md.new
	mv docs/config.md.new docs/config.md
	$(BIN)/scaling data build --describe > docs/corpus_knobs.md.new
	mv docs/corpus_knobs.md.new docs/corpus_knobs.md

$(MKDOCS)/.installed: requirements-docs.lock | setup
	@echo "Setting up MkDocs in $(MKDOCS) ..."
	@rm -rf $(MKDOCS)
	@$(PIP) install --no-deps --target $(MKDOCS) -r requirements-docs.lock
	@touch $@

site: setup $(MKDOCS)/.installed
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(MKDOCS) $(BIN)/python -m mkdocs build --clean
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site --bind 127.0.0.1"

wheel: setup
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/scaling-*.whl

clean:
	rm -rf $(VENV) $(LIBTPU) $(MKDOCS) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
