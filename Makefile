# make demo, make unit, make test: each sets up all it needs first, in .venv or .venv-unit.
#   make test TESTS=tests/unit/formats    a part
#   make unit PYTHON=python3.13           another interpreter
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
UNIT := .venv-unit$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
TESTS ?=
PIP := -m pip --quiet --disable-pip-version-check install
BUILT_FROM := pyproject.toml hatch_build.py ggufnorm/core/kernels.c
PARALLEL := -n logical --dist loadfile
# Unit tests share no engines: whoever is free takes the next.
STEALING := -n logical --dist worksteal

# Tests start thousands of processes, and each would compile all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test unit lint bench browser coverage docs outputs schemas clean

demo: $(READY)
	$(BIN)/ggufnorm demo

ifeq ($(TESTS),)
test: lint
	$(BIN)/pytest $(PARALLEL)
else
test: $(READY)
	$(BIN)/pytest $(TESTS)
endif

# The tests that need neither llama.cpp nor torch, in an environment without them.
unit: $(UNIT)/ready
	$(UNIT)/bin/pytest --no-engines -m "not slow" $(STEALING) $(or $(TESTS),tests/unit)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The HTML report in headless Chromium, which must be installed.
browser: $(READY)
	$(BIN)/python -m tests.browser

schemas: $(READY)
	$(BIN)/python -m ggufnorm.report.schema docs/schema

# The outputs that docs/ shows, printed by the commands above them.
outputs: $(READY)
	$(BIN)/python -m tests.docs.outputs

docs: $(READY)
	$(BIN)/python $(PIP) --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

# Every table of docs/benchmarks.md; some thirty minutes on two cores.
bench: $(READY)
	@for b in header start remote fleet diff audit drift attribute memory compare growth; do \
	  echo; echo "## $$b"; echo; $(BIN)/python -m benchmarks.bench_$$b || exit 1; done

$(READY): $(BUILT_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ggufnorm needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v clang++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "llama.cpp must be compiled, and there is no C++ compiler." >&2; \
	    echo "Install one first: apt-get install g++, dnf install gcc-c++, xcode-select --install" >&2; exit 1; }
	$(PYTHON) -m venv .venv || \
	  { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing; compiling llama.cpp takes some minutes the first time."
	$(BIN)/python $(PIP) --editable '.[dev]'
	@$(BIN)/python -m tests.rpc_plugin || echo "The tests of --rpc will be skipped: see above." >&2
	@touch $@

# Bytecode is compiled when a module is first imported: most are not.
$(UNIT)/ready: $(BUILT_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ggufnorm needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(UNIT) || \
	  { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(UNIT)/bin/python $(PIP) --no-compile --editable '.[unit]'
	@touch $@

clean:
	rm -rf .venv .venv-unit* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage* dist
