# make demo     set up what scoring needs, and score the sample photos
# make web      the web page, on http://127.0.0.1:8000
# make test     set up everything, and run the tests that take no minutes (docs/testing.md)
# make test-all the same, and then the slow tests: whole trainings, programs killed many times
# make lint     style, formatting, dead code and spelling
# make bench    speed of scoring and training, against what else people use, in the same run
# make release  pack the detectors for GitHub Releases: make release BASE_URL=https://…
# make reproduce FACES=… NETWORK=…  train a detector again: is it as good as the shipped one?

PYTHON ?= python3
VENV ?= .venv
FACES ?= ../shared/faces
NETWORK ?= efficientnet_lite0
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo web test test-slow test-all lint bench reproduce release

demo: $(VENV)/scoring-is-installed
	$(BIN)/python infer_vit.py samples

web: $(VENV)/web-is-installed
	$(BIN)/python backend.py

test: $(VENV)/everything-is-installed
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/everything-is-installed
	$(PYTEST) -m slow

test-all: test test-slow

lint: $(VENV)/everything-is-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture
	$(BIN)/codespell

bench: $(VENV)/everything-is-installed
	$(BIN)/python benchmarks/scoring_speed.py
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/cluster_cost.py
	$(BIN)/python benchmarks/readme_tables.py

release: $(VENV)/scoring-is-installed
	$(BIN)/python manage_detectors.py release --base-url $(BASE_URL)

reproduce: $(VENV)/everything-is-installed
	$(BIN)/python benchmarks/reproduce.py --network $(NETWORK) --data "$(FACES)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/scoring-is-installed: requirements-infer.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-infer.txt
	touch $@

$(VENV)/web-is-installed: requirements-web.txt requirements-infer.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-web.txt
	touch $@ $(VENV)/scoring-is-installed

$(VENV)/everything-is-installed: requirements.txt requirements-web.txt requirements-infer.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@ $(VENV)/scoring-is-installed $(VENV)/web-is-installed
