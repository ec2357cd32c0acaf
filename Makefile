# make run      build and show the demonstration
# make test     build and run the tests
# make bench    run every benchmark once, on what is checked out
# make results  measure again what the documents show; half an hour
# make pictures draw the pictures and fill in the tables of the documents from the results
# make lint     ruff, mypy, and the stub against the compiled module
# make clean    remove what was built, and the virtual environment
#
# make dashboard              publish the benchmarks' history as a static site
# make record MACHINE=name    measure this commit for that history; COMMITS=range for others
#
# Everything is installed into a virtual environment, .venv, with the package editable: edits
# of Python files count at once, edits of the kernels after the next make. Another interpreter:
# make PYTHON=python3.12 test. Another environment: make VENV=/tmp/venv test.

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=

bin := $(VENV)/bin
asv := $(abspath $(bin))/asv
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check
# A virtual environment belongs to the interpreter it was made with.
made := $(VENV)/.made-with-$(subst /,_,$(PYTHON))
sources := pyproject.toml setup.py $(wildcard src/cpu/*)

.PHONY: run test bench dashboard record results pictures lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed-plot
	$(bin)/python -m pysoftmax demo

test: $(VENV)/.installed-test
	$(bin)/pytest $(PYTEST_FLAGS)

bench: $(VENV)/.installed-dev
	cd asv_bench && { test -e ~/.asv-machine.json || $(asv) machine --yes >/dev/null; }
	cd asv_bench && $(asv) run --quick --show-stderr --python=same

dashboard: $(VENV)/.installed-asv
	$(bin)/python asv_bench/publish.py

record: $(VENV)/.installed-asv
	$(bin)/python asv_bench/record.py $(MACHINE) $(COMMITS)

results: $(VENV)/.installed-bench $(VENV)/.installed-peers $(VENV)/.installed-test
	$(bin)/python -m pysoftmax bench --json docs/results/speed.json
	$(bin)/python tools/accuracy.py docs/results/accuracy.json
	$(bin)/python tools/reproducibility.py docs/results/reproducibility.json

pictures: $(VENV)/.installed-bench
	$(bin)/python tools/pictures.py

lint: $(VENV)/.installed-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/stubtest pysoftmax.backends._cpu

$(made):
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(made) $(sources)
	@echo "building pysoftmax; this takes a minute or two"
	$(pip) --editable .
	@touch $@

# The package is there, so this adds only what the extra requires.
$(VENV)/.installed-%: $(VENV)/.installed
	$(pip) 'pysoftmax[$*]'
	@touch $@

# asv builds what it measures, and publishes without: neither waits for a build here.
$(VENV)/.installed-asv: $(made)
	$(pip) 'asv>=0.6.4'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info pysoftmax/backends/*.so
	rm -rf asv_bench/env asv_bench/html asv_bench/vendor .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pysoftmax tests asv_bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
