# All development tasks of this repository; CI runs the same targets. GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test record record-live check soak bench bench-large savings docs prices lock clean

PY := .venv/bin/python
PYTHON_VERSION := $(shell cat .python-version)

# A working uv, or else the locked one, fetched with pip.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)

# uv trusts the same certificates as pip: the system's (the second variable is its name in older releases).
UV_SYSTEM_CERTS ?= 1
UV_NATIVE_TLS ?= 1
export UV_SYSTEM_CERTS UV_NATIVE_TLS

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## Run an agent that writes text and reports what it cost; without a key, on a local model
	@$(PY) examples/quickstart.py

# The suite starts many short processes, which would compile our files anew each time.
test soak: export PYTHONDONTWRITEBYTECODE :=
test: .venv/.ready ## Run the whole test suite, without network
	$(PY) -m pytest

record: .venv/.ready ## Re-record the cassettes, from the provider double and the local model
	$(PY) -m pytest -n0 --record-mode=all tests

record-live: .venv/.ready ## Re-record a provider's cassettes from its real endpoint: PROVIDER=openai, with its key set
	@$(PY) -m pytest -n0 --record-mode=all --live="$(PROVIDER)" tests

check: .venv/.ready ## Check lint, format, types, layers and that the documentation site can be built
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(SITE)

# What fills every core, or measures short times, runs by itself; what waits for seconds, beside its like only.
ALONE := $(addprefix tests/soak/test_,race.py budgets.py stores.py tenants.py local_model.py)
WAITING := $(addprefix tests/soak/test_,interrupt.py silence.py)

soak: .venv/.ready ## Run the long tests: kills, races, thousands of calls
	$(PY) -m pytest -n2 --dist=load -o faulthandler_timeout=300 tests/soak $(addprefix --ignore=,$(ALONE) $(WAITING))
	$(PY) -m pytest -n2 --dist=load -o faulthandler_timeout=300 $(WAITING)
	$(PY) -m pytest -n0 -o faulthandler_timeout=300 $(ALONE)

BENCHMARKS := calls load streams appends imports processes reports exports

bench: .venv/.ready ## Measure what docs/PERFORMANCE.md claims, and write its tables; about 10 minutes on a quiet machine
	@for each in $(BENCHMARKS); do $(PY) -m benchmarks.$$each || exit 1; done
	$(PY) docs/generate.py

bench-large: .venv/.ready ## The same for reports and exports with ledgers of 10 million rows
	@for each in reports exports; do $(PY) -m benchmarks.$$each --large || exit 1; done
	$(PY) docs/generate.py

savings: .venv/.ready ## Compare what strategies cost, and how many of their answers are right
	$(PY) benchmarks/savings.py

docs: .venv/.ready ## Regenerate the generated parts of README.md, docs/ and .env.example; build the site into build/site
	$(PY) docs/generate.py
	$(SITE)

prices: .venv/.ready ## Write the price table anew from its two sources, and show what changed
	$(PY) -m shared.prices.make_table

# Its notice that mkdocs has a successor is not for the reader of this output.
SITE := NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q

COMPILE := .venv/bin/uv pip compile pyproject.toml --universal --python-version $(PYTHON_VERSION) \
  --no-header --no-annotate -q $(if $(UPGRADE),--upgrade)

lock: .venv/.ready ## Regenerate requirements.lock and requirements.txt; UPGRADE=1 takes the newest versions
	$(COMPILE) --generate-hashes --all-extras --group dev -o requirements.lock
	$(COMPILE) -o requirements.txt

clean: ## Remove everything fetched, built or cached
	rm -rf .venv .uv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: exactly what requirements.lock names, with hashes checked, plus this checkout. `-t 2`: uv shows
# progress only on a terminal. Bytecode is compiled now, because every process imports thousands of modules.
.venv/.ready: requirements.lock pyproject.toml .python-version | $(filter .uv/bin/uv,$(UV))
	@case "$$($(PY) --version 2>&1)" in \
	  "Python $(PYTHON_VERSION)."*) ;; \
	  *) $(UV) venv -q --allow-existing --python $(PYTHON_VERSION) .venv || { \
	    echo "There is no Python $(PYTHON_VERSION) here, and uv could not fetch one: please install it." >&2; exit 1; } ;; \
	esac
	@echo "Installing the locked packages into .venv; the first time that is about 250 MB and takes a minute or more." >&2
	@quiet=-q; if [ -t 2 ]; then quiet=; fi; \
	  $(UV) pip sync $$quiet --compile-bytecode --python $(PY) --require-hashes requirements.lock
	@$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

# The uv from requirements.lock, with its hashes, by any Python that has pip; PEP 668 allows `--target` installs.
.uv/bin/uv: | requirements.lock
	@echo "Fetching uv into .uv with pip." >&2
	@mkdir -p .uv
	@awk '/^uv==/ { wanted = 1 } wanted { print } wanted && !/\\$$/ { exit }' requirements.lock > .uv/requirements.txt
	@for python in python3 python$(PYTHON_VERSION) /usr/bin/python3 python; do \
	  if $$python -m pip --version >/dev/null 2>&1; then \
	    PIP_USER=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
	      $$python -m pip install -q --upgrade --target .uv --require-hashes -r .uv/requirements.txt && exit 0; \
	    exit 1; \
	  fi; \
	done; \
	echo "Neither uv nor a Python with pip was found: install one (https://docs.astral.sh/uv, or python3-pip)." >&2; exit 1
