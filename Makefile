# Two commands for a fresh machine with Python >= 3.10, pip and make:
#   make demo   sets up .venv and runs the app on data/sample_bids
#   make test   sets up .venv and runs every check that CI runs

PYTHON ?= python3
VENV := .venv
TOOLS := .venv-tools
BIN := $(VENV)/bin
OUT ?= out/sample
OSV ?= https://api.osv.dev/v1/query

.PHONY: demo test setup tools docs dist audit clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/siam-bids data/sample_bids $(OUT) participant
	$(BIN)/siam-bids data/sample_bids $(OUT) group
	@echo "Open $(OUT)/group.html in a browser."

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 2 \
		--dist loadfile --no-loadscope-reorder --cov=siam_bids --cov-report=

# Programs of others that some tests drive; without them these tests skip. Needs Python 3.11.
tools: $(TOOLS)/ready

$(TOOLS)/ready: tests/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --no-deps --requirement tests/tools.txt
	touch $@

# The documentation, from docs/: open out/site/index.html in a browser.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs out/site

# What a release uploads: dist/ with an sdist and a wheel, checked as the index will.
dist: setup
	rm -rf dist
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# Known vulnerabilities of the packages that are installed with the app, as osv.dev tells them.
audit: $(TOOLS)/ready
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip \
		--progress-spinner off --vulnerability-service osv --osv-url $(OSV)

clean:
	rm -rf $(VENV) $(TOOLS) out
