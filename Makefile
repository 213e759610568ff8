PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := hatch_build.py optimizer/engine/kernels/build.py optimizer/engine/kernels/kernels.cpp

PYTEST := $(BIN)/python -m pytest
MINUTES ?= 30
SEEDS ?= 20
CORES := $(shell getconf _NPROCESSORS_ONLN)
# Tests wait for processes that they start, and for files: two workers more than there are cores.
WORKERS ?= $(shell expr $(CORES) + 2)
# A file's tests share what they prepare. In the order of their folders: the longest files don't come last.
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# A dashboard has worker processes of its own: beside other tests a browser waits too long. One for each core; with
# one more they wait longer in all.
BROWSERS := --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder
# About one visit in a thousand of a browser on a busy machine breaks off: what failed has to pass by itself. Its
# first report stays, with what its pages said.
AGAIN = $(PYTEST) --last-failed --last-failed-no-failures none $(call marked,browser)
# To find what has a mark, no other file needs to be imported.
marked = $(sort $(shell grep -rl --include='*.py' 'mark\.$(1)' tests))

# Tests start hundreds of processes: each would compile the whole package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: dashboard test test-all soak check format bench clean

dashboard: $(VENV)/installed
	$(BIN)/paretoscope dashboard

# Calibration statistics that one part has made are there for the next one; those of an earlier run are not.
test test-all: export PARETOSCOPE_TEST_STATISTICS = $(CURDIR)/.pytest_cache/statistics

test: $(VENV)/installed-dev
	rm -rf $$PARETOSCOPE_TEST_STATISTICS
	$(PYTEST) $(PARALLEL) -m 'not (timing or browser or slow)'
	$(PYTEST) $(BROWSERS) -m 'browser and not (timing or slow)' $(call marked,browser) || $(AGAIN)
	$(PYTEST) -m 'timing and not slow' $(call marked,timing)

# What is slow comes after all else, by the same workers: to collect what there is takes each of them 15 s.
test-all: $(VENV)/installed-dev
	rm -rf $$PARETOSCOPE_TEST_STATISTICS
	$(PYTEST) $(PARALLEL) -m 'not (timing or browser)'
	$(PYTEST) $(BROWSERS) -m 'browser and not timing' $(call marked,browser) || $(AGAIN)
	$(PYTEST) -m timing $(call marked,timing)

soak: $(VENV)/installed-dev
	$(BIN)/python -m tools.soak --minutes $(MINUTES)
	PARETOSCOPE_TEST_SEEDS=$(SEEDS) $(PYTEST) tests/faults/test_cluster_kills.py tests/faults/test_database_server.py

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/notebook.py

clean:
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[imagenet,onnx]'
	touch $@

$(VENV)/installed-dev: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev,imagenet,onnx]'
	@# On every core, where pip takes one; without the packages' own tests and those of which little is
	@# imported. Some files are written for another Python.
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|pip|setuptools|mypyc?|torchgen|testing/_internal|graph_objs)/' $(VENV)/lib optimizer pages || true
	touch $@ $(VENV)/installed
