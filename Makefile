# make demo: everything, end to end, on this machine's CPU.   make test: lint, types, tests.   make coverage: the tests, and what they reach.
#   PYTHON=python3.12       the Python (3.11 to 3.13) that the virtual environment is made from
#   TORCH_INDEX=URL         take torch from this package index and no other, e.g.
#                           https://download.pytorch.org/whl/cpu (CPU builds) or .../whl/cu130 (CUDA builds)
# Without TORCH_INDEX, the CPU build is taken from pip's own configuration, else from pytorch.org.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; compiling all that is installed would take a third of the installation.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
PYTEST := $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test coverage clean

demo: $(VENV)/installed
	$(BIN)/paras2s align

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

# By itself: it makes the tests a third slower.
coverage: $(VENV)/installed-dev
	$(PYTEST) --cov=paras2s_cli --cov-report=term

$(VENV)/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' || \
	  { echo "paras2s needs Python 3.11 to 3.13: make PYTHON=python3.12 (or install one of them first)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made: on Debian or Ubuntu, apt install python3-venv"; exit 2; }
	@touch $@

# First, alone and pinned, so that nothing below pulls another (CUDA, several GB) build.
$(VENV)/torch: $(VENV)/made constraints.txt
ifdef TORCH_INDEX
	$(INSTALL) --index-url $(TORCH_INDEX) 'torch==$(TORCH_VERSION)'
else
	$(INSTALL) 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null || \
	  $(INSTALL) --index-url $(CPU_INDEX) 'torch==$(TORCH_VERSION)'
endif
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[pocket]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[pocket,dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
