# make run      build and show the demonstration
# make test     build and run the tests
# make bench    run every benchmark once, on what is checked out
# make results  measure again what the documents show; half an hour
# make pictures draw the pictures and fill in the tables of the documents from the results
# make wheel    one for this Python and any Linux that is not older, in dist
# make docs     the documentation site, build/site
# make test-gpu the tests that need a GPU; CUDA=cuda12 where the driver is older
# make sanitize-gpu  every kernel under compute-sanitizer, which comes with the CUDA toolkit
# make bench-gpu     race the peers on a GPU
# make lint     ruff, mypy, and the stub against the compiled module
# make clean    remove what was built, and the virtual environment
#
# make dashboard              publish the benchmarks' history as a static site
# make record MACHINE=name    measure this commit for that history; COMMITS=range for others
#
# Everything is installed into a virtual environment, .venv, with the package editable: edits
# of Python files count at once, edits of the kernels and of what setup.py compiles of Python (FRONT)
# after the next make. Another interpreter: make PYTHON=python3.12 test. Another environment:
# make VENV=/tmp/venv test.

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
CUDA ?= cuda13

bin := $(VENV)/bin
asv := $(abspath $(bin))/asv
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check
# A virtual environment belongs to the interpreter it was made with.
made := $(VENV)/.made-with-$(subst /,_,$(PYTHON))
sources := pyproject.toml setup.py $(wildcard src/cpu/* src/cpu/door/*)
# FRONT of setup.py.
sources += $(patsubst %,pysoftmax/%.py,$(shell sed -n 's/^FRONT = \[\(.*\)\]/\1/p' setup.py | tr -d '",'))

.PHONY: run test test-gpu sanitize-gpu bench-gpu bench dashboard record results pictures
.PHONY: wheel docs lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed-plot
	$(bin)/python -m pysoftmax demo

test: $(VENV)/.installed-test
	$(bin)/pytest $(PYTEST_FLAGS)

# Without a device all of these would be skipped.
has_gpu = $(bin)/python -c 'import cupy, sys; cupy.is_available() or sys.exit("no CUDA device")'

test-gpu: $(VENV)/.installed-test $(VENV)/.installed-$(CUDA)
	$(has_gpu)
	$(bin)/pytest -k 'cupy or cuda' $(PYTEST_FLAGS)

sanitize-gpu: $(VENV)/.installed-test $(VENV)/.installed-$(CUDA)
	$(has_gpu)
	for tool in memcheck racecheck initcheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(bin)/python tests/every_kernel.py || exit 1; \
	done

bench-gpu: $(VENV)/.installed-bench $(VENV)/.installed-$(CUDA)
	$(bin)/python -m pysoftmax bench --device cuda --json docs/results/speed-gpu.json

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

wheel: $(VENV)/.installed-dev
	$(bin)/python -m build --wheel --outdir build/wheel
	PATH="$(abspath $(bin)):$$PATH" $(bin)/auditwheel repair --wheel-dir dist build/wheel/*.whl

docs: $(VENV)/.installed-docs
	$(bin)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "open build/site/index.html"

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
	rm -rf $(VENV) build dist *.egg-info pysoftmax/*.so pysoftmax/backends/*.so
	rm -rf docs/generated asv_bench/env asv_bench/html asv_bench/vendor .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pysoftmax tests asv_bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
