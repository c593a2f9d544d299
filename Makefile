# Every target makes its own environment in .venv; nothing is installed again until pyproject.toml or constraints.txt change.
#
#   make demo      build a spec, verify it on both backends, and see the memory at work
#   make test      lint and run the tests
#   make test-versions  the oldest and the newest torch, Triton and Python that are promised, each in its environment
#   make offline   compile every kernel of the shipped specs for every GPU architecture and write the tables
#   make docs      write the pages of docs/ that are printed from the code
#   make ratios    time the torch backend against attention and flash-linear-attention's torch on this machine
#   make traffic   count the launches and bytes of the Triton backend, beside a peer's and a lower bound

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPEC ?= linear_grm
OFFLINE ?=
VERSIONS ?=

.PHONY: demo test test-versions lint install install-test offline docs ratios traffic clean

demo: install
	$(BIN)/python -m mcgen build mcgen/specs/$(SPEC).yaml -o build/demo
	$(BIN)/python -m mcgen verify build/demo/$(SPEC).py --backend torch
	$(BIN)/python -m mcgen verify build/demo/$(SPEC).py --backend triton
	$(BIN)/python demo/recall.py

# The tests turn Triton's interpreter on and off themselves, so none is inherited.
test: lint
	env -u TRITON_INTERPRET OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Downloads several GB of torch, unless pip is pointed at builds for CPUs; VERSIONS names some of what there is.
test-versions: install-test
	$(BIN)/python -m tests.versions $(VERSIONS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Kernels that the tables have are left as they are; OFFLINE names specs, all of them by default.
# What they lack of deep memories, float32, takes hours.
offline: install-test
	env -u TRITON_INTERPRET $(BIN)/python -m mcgen tune --offline --shipped $(OFFLINE)

docs: install
	$(BIN)/python -m mcgen refusals --markdown > docs/refusals.md

# On a machine that does nothing else: many small operations feel it most when threads have to be woken.
ratios: install-test
	$(BIN)/python benchmarks/ratios.py

traffic: install
	$(BIN)/python benchmarks/traffic.py

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# By itself and first: pinned for reproducible tests, and every later resolution finds it in place.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP_INSTALL) torch
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable '.[tune]'
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
