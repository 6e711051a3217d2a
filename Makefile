# `make install` makes the environment .venv in this folder; demo, check and test do so first if it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs

# The exact versions to install, for the Pythons that have such a file; other Pythons get the newest versions allowed.
LOCKED_PYTHONS := 3.11 3.12 3.13
MINOR = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCK = $(wildcard requirements/lock-$(MINOR).txt)
INSTALL = $(BIN)/python -m pip install --quiet $(LOCK:%=--constraint %)

.PHONY: install demo weights check test faults soak fuzz lint format lock audit clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

# Huge pages spare the CPU nine in ten page faults, and training 15 % of its time (glibc 2.35 or newer; else no effect).
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
demo: $(VENV)/.installed
	$(BIN)/stgt demo --workdir $(RUNS)/demo

weights: $(VENV)/.installed  # the trained model that comes with the package, from the demo's second stage
	$(BIN)/stgt export $(RUNS)/demo/stage2 stgt_jax/pretrained/moving_shapes --shards $(RUNS)/demo/shards \
	  --made-by "make demo"

check: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

# The longest files come first (tests/conftest.py); xdist's own order is by the number of tests.
test: lint $(VENV)/.installed-compilers $(VENV)/.installed-oracles
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# What users' machines do to a program, done to real processes; prints a table. FAULTS=--short takes 3 minutes.
faults: export PYTHONPATH := .:tests:tests/experiments
faults: $(VENV)/.installed-test
	$(BIN)/python tests/faults/run.py $(FAULTS)

# Half an hour of training, validation, checkpoints and data builds; prints what the processes hold.
soak: export PYTHONPATH := .:tests:tests/experiments
soak: $(VENV)/.installed-test
	$(BIN)/python tests/faults/soak.py $(SOAK)

# Mutated files for every parser. FUZZ="--seconds 60" takes a minute.
FUZZ ?= --runs 1000000
fuzz: export PYTHONPATH := .:tests/fuzz:$(VENV)/fuzz
fuzz: export JAX_PLATFORMS := cpu
fuzz: $(VENV)/.installed-test $(VENV)/.installed-fuzz
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: | $(BIN)/python  # the newest versions that the ranges allow, of all extras too
	$(BIN)/python -m pip install --quiet --upgrade uv
	for minor in $(LOCKED_PYTHONS); do \
	  $(BIN)/uv pip compile --quiet --upgrade --python-version $$minor --all-extras --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements/lock-$$minor.txt \
	    pyproject.toml requirements-test.txt || exit; \
	done

audit: $(VENV)/.installed-audit  # old packages, and known vulnerabilities of the locked versions; asks PyPI
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/python requirements/check_age.py $(BIN)/uv
	for minor in $(LOCKED_PYTHONS); do \
	  PYTHONPATH=$(VENV)/audit $(BIN)/python -m pip_audit --strict --no-deps --disable-pip \
	    --requirement requirements/lock-$$minor.txt || exit; \
	done

$(VENV)/.installed-audit: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/audit pip-audit
	touch $@

$(VENV)/.installed-fuzz: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/fuzz atheris
	touch $@

clean:  # what `make test` left; runs and .venv stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stgt needs Python 3.11 or newer; make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml $(wildcard requirements/lock-*.txt) | $(BIN)/python
	@[ "$(LOCK)" ] || echo "no lock file for Python $(MINOR): installing the newest versions that requirements.txt allows"
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(INSTALL) --requirement requirements-test.txt
	touch $@

# Independent implementations that tests compare with. They stand apart, as the package must not need them.
$(VENV)/.installed-oracles: requirements-oracles.txt $(VENV)/.installed-test
	$(INSTALL) --upgrade --target $(VENV)/oracles --requirement requirements-oracles.txt
	touch $@

# XLA's compilers for TPUs and for NVIDIA GPUs, which need no such device; Linux alone. They stand apart, for the tests
# that use them: with them on the path JAX looks for a device at every start, and complains that there is none.
$(VENV)/.installed-compilers: $(VENV)/.installed-test
ifeq ($(shell uname -s),Linux)
	$(INSTALL) --upgrade --target $(VENV)/tpu 'libtpu; platform_machine == "x86_64"'
	version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	$(INSTALL) --upgrade --target $(VENV)/cuda "jax-cuda13-plugin==$$version" nvidia-cuda-nvcc
endif
	touch $@
