# Everything that is done with this repository; CI runs the same. GNU make 3.81 (macOS) and later.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test record record-live check soak bench docs prices lock clean

PY := .venv/bin/python
PYTHON_VERSION := $(shell cat .python-version)

# A uv that works, else the locked one, fetched with pip.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)

# uv trusts what pip trusts: the system's certificates (the second is its name in older releases).
UV_SYSTEM_CERTS ?= 1
UV_NATIVE_TLS ?= 1
export UV_SYSTEM_CERTS UV_NATIVE_TLS

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## An agent writes text, pays for it and reports the bill; with no key, on a local model
	@$(PY) examples/quickstart.py

test: .venv/.ready ## The whole test suite, without network
	$(PY) -m pytest

record: .venv/.ready ## Record the cassettes anew, from the provider double and the local model
	$(PY) -m pytest -n0 --record-mode=all tests

record-live: .venv/.ready ## Record a provider's cassettes from its real endpoint: PROVIDER=openai, with its key set
	@$(PY) -m pytest -n0 --record-mode=all --live="$(PROVIDER)" tests

check: .venv/.ready ## Lint, format, types and layers
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	.venv/bin/lint-imports

soak: .venv/.ready ## What takes long: kills, races, thousands of calls
	$(PY) -m pytest -n0 -o faulthandler_timeout=300 tests/soak

bench: .venv/.ready ## What a call costs beside the provider's own time
	$(PY) benchmarks/overhead.py

docs: .venv/.ready ## Write the generated parts of README.md, docs/ and .env.example anew
	$(PY) docs/generate.py

prices: .venv/.ready ## Write the price table anew from its two sources, and show what changed
	$(PY) -m shared.prices.make_table

COMPILE := .venv/bin/uv pip compile pyproject.toml --universal --python-version $(PYTHON_VERSION) \
  --no-header --no-annotate -q $(if $(UPGRADE),--upgrade)

lock: .venv/.ready ## Write requirements.lock and requirements.txt anew; UPGRADE=1 takes the newest versions
	$(COMPILE) --generate-hashes --all-extras --group dev -o requirements.lock
	$(COMPILE) -o requirements.txt

clean: ## Remove what was fetched, built and cached
	rm -rf .venv .uv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: exactly what requirements.lock names, hashes checked, and this checkout. `-t 2`: uv shows its
# progress to people only. Compiled at once, since thousands of modules are imported anew by every process.
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

# The uv of requirements.lock with its hashes, by whichever Python has pip; `--target` is no system install (PEP 668).
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
