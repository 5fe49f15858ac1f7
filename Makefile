# Two commands for a fresh machine with Python >= 3.10, pip and make:
#   make demo   sets up .venv and runs the app on data/sample_bids
#   make test   sets up .venv and runs every check that CI runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/sample

.PHONY: demo test check setup clean

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
	$(BIN)/pytest

clean:
	rm -rf $(VENV) out
