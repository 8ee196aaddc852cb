# Everything a fresh machine needs: `make install`, `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install demo test faults style check docs build lock bench clean

$(VENV)/.stamp-install: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("bivallate needs Python 3.11 or newer, got " + sys.version.split()[0] + "; run make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-install
	$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-test
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-install
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

install: $(VENV)/.stamp-install
	@echo "installed: source $(BIN)/activate puts bivallate on the path"

demo: $(VENV)/.stamp-install
	@$(BIN)/bivallate demo --out runs/demo

test: $(VENV)/.stamp-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

faults: $(VENV)/.stamp-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

style: $(VENV)/.stamp-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

check: style
	@$(MAKE) --no-print-directory test

docs: $(VENV)/.stamp-docs
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo "the site: docs/_build/index.html"

build: $(VENV)/.stamp-dev
	@rm -rf dist
	@$(BIN)/python -m build -q --no-isolation
	@$(BIN)/twine check --strict dist/*

lock: $(VENV)/.stamp-dev
	@$(BIN)/uv pip compile -q --universal --extra dev --extra docs --extra timm --extra tensorboard --extra wandb --no-emit-index-url --no-header --no-annotate --python-version 3.11 -c constraints.txt -o requirements.lock pyproject.toml

bench: $(VENV)/.stamp-test
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) dist runs docs/_build .pytest_cache .ruff_cache
