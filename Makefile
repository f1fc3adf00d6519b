# Every task of the project. `make` alone lists them. Needs Python 3.11 or newer, and nothing else:
# the first task that wants packages makes .venv from the locks in requirements/.
.POSIX:
.SUFFIXES:

PYTHON = python3
VENV = .venv
WORKERS = 2
ARGS =
CUTS = 100
LOCKARGS =

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
# Stamps say which lock a .venv was filled from: set-up runs again when a lock or pyproject changes.
RUNTIME = $(VENV)/.stamp-runtime
DEV = $(VENV)/.stamp-dev
LOCKS = requirements/build.lock requirements/runtime.lock

.PHONY: help demo test check format format-check lint types imports tidy spelling docs reference \
	typescript-types coverage bench soak power-cut build wheel lock clean

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(RUNTIME) ## see what tillroll does, on a ledger in a temporary file
	@$(BIN)/tillroll demo

test: $(DEV) ## the whole test suite, but for what takes minutes
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: format-check lint types imports tidy spelling docs ## all that must hold besides the tests

format: $(DEV) ## rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

format-check: $(DEV)
	$(BIN)/ruff format --check .

lint: $(DEV) ## ruff, all rules but the ones that pyproject.toml argues away
	$(BIN)/ruff check .

types: $(DEV) ## mypy strict on the source, pyright strict on the public names
	$(BIN)/mypy
	PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT=1 $(BIN)/pyright --pythonpath $(BIN)/python

imports: $(DEV) ## which way imports may point
	$(BIN)/lint-imports

tidy: $(DEV) ## the repository tests itself
	$(BIN)/python -m pytest tests/tidy

spelling: $(DEV)
	$(BIN)/codespell

docs: $(DEV) ## build the documentation site into site/
	$(BIN)/zensical build --clean --strict

reference: $(DEV) ## write the generated pages of docs/reference anew
	$(BIN)/python scripts/reference.py

typescript-types: $(DEV) ## write the types of the TypeScript client anew (node and npm)
	cd clients/typescript && npm ci --silent
	mkdir -p build
	$(BIN)/python -c 'from tillroll.api import openapi; print(openapi.description().decode())' \
		> build/openapi.json
	cd clients/typescript && npm run --silent schema -- ../../build/openapi.json

coverage: $(DEV) ## the tests with branch coverage; all of ledger/ must be covered
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term $(ARGS)
	$(BIN)/python -m coverage report --include='src/tillroll/ledger/*' --fail-under=100

bench: $(DEV) ## measure speed; reports, never fails on a number
	$(BIN)/python benchmarks/run.py $(ARGS)

soak: $(DEV) ## the tests that take minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m soak $(ARGS)

power-cut: $(DEV) ## pull the plug of a file system under load, CUTS times (root and xfsprogs)
	$(BIN)/python tests/faults/power_cut.py --cuts $(CUTS) $(ARGS)

build: $(DEV) ## wheel and source archive into dist/
	rm -rf dist
	$(BIN)/hatchling build

# The stamps go first: the next task puts the package in place again.
wheel: build ## the tests against the built wheel, not against the source
	rm -f $(RUNTIME) $(DEV)
	$(PIP) install --no-deps --force-reinstall dist/tillroll-*.whl
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# Needs uv on the PATH. No line of a lock may name a host: where packages come from is the
# installer's business. Each lock is compiled under the one before it, so the versions agree.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(LOCKARGS)

lock: ## renew the locks (LOCKARGS=--upgrade for newer versions)
	$(COMPILE) requirements/build.in -o requirements/build.lock
	$(COMPILE) pyproject.toml -o requirements/runtime.lock
	$(COMPILE) pyproject.toml --extra server --extra postgres --extra mcp --extra otel \
		--extra stripe \
		-c requirements/runtime.lock -o requirements/server.lock
	$(COMPILE) pyproject.toml --extra all --group dev -c requirements/build.lock \
		-c requirements/server.lock -o requirements/dev.lock
	@if grep -n '://' requirements/*.lock; then echo 'a lock names a host' >&2; exit 1; fi

clean: ## remove what the tasks made
	rm -rf $(VENV) site dist build .coverage .coverage.* htmlcov
	rm -rf .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests examples -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'tillroll needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The package is installed in place (a change of the source needs no new set-up), by the locked
# build tools: pip's usual isolated build would fetch whatever hatchling is newest.
# The locks are complete, so nothing is resolved (--no-deps): an older pip would resolve the extras
# of a locked package anew, and stop at a release that is newer than the lock.
$(RUNTIME): $(VENV)/.stamp-venv $(LOCKS) pyproject.toml
	$(PIP) install --no-deps --require-hashes -r requirements/build.lock -r requirements/runtime.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src # an editable install leaves that to the first start
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.lock
	$(PIP) install --no-deps --require-hashes -r requirements/dev.lock
	@touch $@
