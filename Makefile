# make demo, make test: each sets up all it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test lint bench browser docs schemas clean

demo: $(READY)
	$(BIN)/ggufnorm demo

test: lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The HTML report in headless Chromium, which must be installed.
browser: $(READY)
	$(BIN)/python -m tests.browser

schemas: $(READY)
	$(BIN)/python -m ggufnorm.report.schema docs/schema

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

# Every table of docs/benchmarks.md; some twenty minutes on two cores.
bench: $(READY)
	@for b in header start remote diff drift memory; do \
	  echo; echo "## $$b"; echo; $(BIN)/python -m benchmarks.bench_$$b || exit 1; done

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ggufnorm needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v clang++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "llama.cpp must be compiled, and there is no C++ compiler." >&2; \
	    echo "Install one first: apt-get install g++, dnf install gcc-c++, xcode-select --install" >&2; exit 1; }
	$(PYTHON) -m venv .venv || \
	  { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing; compiling llama.cpp takes some minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
