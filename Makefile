# make demo: train and compare all networks on procedural scenes. make test: the whole test suite. make faults: every
# trial of its part tests/faults, which takes a quarter of an hour and stores its counts. All set up .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults check clean

demo: .venv/installed
	$(BIN)/trailseg study studies/demo.yaml out=runs/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadfile

faults: .venv/installed-dev
	TRAILSEG_FAULTS=full $(BIN)/python -m pytest -q tests/faults

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv runs/demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed
