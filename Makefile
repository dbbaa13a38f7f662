# Needs python 3.11 or newer and make; everything else is installed into .venv, pinned by constraints.txt.
#
# make run       install, then the walk-forward backtest of configs/walk_forward_sp500.yaml (CONFIG=... for another)
# make test      install, then the tests (ARGS="-k purge -x" goes to pytest)
# make test-all  the tests and the long proofs
# make check     lint, types, import order, contents of the wheel
# make bench     every benchmark, one after another, beside its peers: leave the machine idle
# make clean     remove what the others made

VENV := .venv
PEERS := .venv-peers
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet -c constraints.txt
PEERS_PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PEERS)/bin/python -m pip install --quiet -c benchmarks/peers/constraints.txt --only-binary :all:
# two OpenMP threads beside any other process can be 50 times slower: the tests use processes instead, and the networks
# of `make run` are as fast on one. Many tests start a process of their own: it should not compile the library again.
# The two halves of the tests begin apart (worksteal), so that what the tests of a module share is made once
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest
CONFIG ?= configs/walk_forward_sp500.yaml
ARGS ?=

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help run test test-all check bench clean

help:
	@sed -n 's/^# make /make /p' $(firstword $(MAKEFILE_LIST))

# the first interpreter named here that is new enough; PYTHON=... goes before
$(VENV)/.made:
	@for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then echo "qfml needs python 3.11 or newer: none of python3, python3.11 ... python3.14 is" >&2; exit 1; fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$found comes without venv and ensurepip; on Debian and Ubuntu they are the package python3-venv" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV) && touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing qfml and the sample data into $(VENV) (the first time takes some minutes)"
	@$(PIP) -e '.[samples]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing qfml and the development tools into $(VENV) (the first time takes some minutes)"
	@$(PIP) -e '.[samples,dev]'
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the libraries that the benchmarks compare with into $(VENV)"
	@$(PIP) -e '.[samples,dev,bench]'
	@touch $@

# pfhedge needs numpy 1; without it the benchmarks go on, and say so in their records
$(PEERS)/.made: $(VENV)/.made benchmarks/peers/constraints.txt
	@echo "installing the peers that need other versions into $(PEERS)"
	@$(PY) -m venv --clear $(PEERS)
	@if $(PEERS_PIP) pfhedge torch; then touch $@; \
	else rm -rf $(PEERS); echo "pfhedge cannot be installed for $$($(PY) --version): its rows will be missing" >&2; fi

run: $(VENV)/.run
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/qfml run $(CONFIG)

test: $(VENV)/.dev
	@$(PYTEST) -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.dev
	@$(PYTEST) -n 2 --dist worksteal --slow $(ARGS)

check: $(VENV)/.dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/basedpyright --pythonpath $(PY)
	@$(PYTEST) -q tests/test_architecture.py tests/test_imports.py tests/test_wheel.py

# one after another: a benchmark measures an idle machine
bench: $(VENV)/.bench $(PEERS)/.made
	@for file in benchmarks/bench_*.py; do \
		name=$${file##*/bench_}; echo "== $$file"; \
		$(PY) "$$file" --out "benchmarks/records/$${name%.py}.json" || exit 1; \
	done

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find qfml pricers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
