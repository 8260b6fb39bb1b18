# make demo     set up what scoring needs, and score the sample photos
# make test     set up everything, and run all tests
# make lint     style and formatting
# make bench    speed of scoring, against what else people use, in the same run
# make evaluate the README's results table, from labelled faces: make evaluate FACES=../shared/faces
# make release  pack the detectors for GitHub Releases: make release BASE_URL=https://…

PYTHON ?= python3
VENV ?= .venv
FACES ?= ../shared/faces
BIN := $(VENV)/bin

.PHONY: demo test lint bench evaluate release

demo: $(VENV)/scoring-is-installed
	$(BIN)/python infer_meso4.py samples

test: $(VENV)/everything-is-installed
	$(BIN)/python -m pytest

lint: $(VENV)/everything-is-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/everything-is-installed
	$(BIN)/python benchmarks/scoring_speed.py

evaluate: $(VENV)/everything-is-installed
	$(BIN)/python benchmarks/evaluate.py $(dir $(wildcard weights/*/detector.json)) --data $(FACES)/test/*

release: $(VENV)/scoring-is-installed
	$(BIN)/python -m pipeline.release --base-url $(BASE_URL)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/scoring-is-installed: requirements-infer.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-infer.txt
	touch $@

$(VENV)/everything-is-installed: requirements.txt requirements-infer.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@ $(VENV)/scoring-is-installed
