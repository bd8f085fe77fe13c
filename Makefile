# `make demo` shows what Unraze does, `make test` whether it does it right; `make help` lists all.

PYTHON ?= python3
DEVICE ?= cuda
DEMO_MINUTES ?= 4
FUZZ_MINUTES ?= 60
DEMO := runs/demo
# More for pip, the index of torch's CPU builds say: make demo PIP_ARGS="--extra-index-url …"
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
UNRAZE := $(BIN)/unraze
FASHION := /usr/share/datasets/fashion-mnist

# without its byte code each process of the tests compiles all of torch's modules anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-device test-faults lint fuzz dist lock audit clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) \
	  | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## trains on Fashion-MNIST for DEMO_MINUTES (4), samples, makes a film
	@set -e; \
	if [ -f $(DEMO)/config.toml ]; then \
	  echo "$(DEMO) is there already: going on with it (rm -r $(DEMO) to begin anew)"; \
	  $(UNRAZE) resume $(DEMO); \
	else \
	  if [ ! -d $(FASHION) ] && command -v apt-get >/dev/null; then \
	    sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	    if $$sudo true 2>/dev/null; then \
	      echo "installing the Debian package dataset-fashion-mnist"; \
	      $$sudo apt-get install -y -q dataset-fashion-mnist >/dev/null 2>&1 \
	      || { $$sudo apt-get update -q >/dev/null 2>&1; \
	           $$sudo apt-get install -y -q dataset-fashion-mnist >/dev/null 2>&1; } \
	      || echo "that did not work"; \
	    fi; \
	  fi; \
	  data=fashion-mnist; \
	  $(UNRAZE) data get fashion-mnist || { \
	    data=digits; \
	    echo "Fashion-MNIST is not to be had here: training on the bundled digits instead"; \
	  }; \
	  $(UNRAZE) train $$data --minutes $(DEMO_MINUTES) --out $(DEMO); \
	fi
	@set -e; \
	if [ -f $(DEMO)/pictures/film.gif ]; then \
	  echo "$(DEMO)/pictures is there already"; \
	else \
	  $(UNRAZE) sample $(DEMO) -n 64 --film --out $(DEMO)/pictures; \
	fi
	@echo
	@echo "The pictures:"
	@echo "  $(DEMO)/pictures/grid.png   64 of them, made from noise"
	@echo "  $(DEMO)/pictures/film.gif   how the noise turned into them"
	@echo "  $(DEMO)/samples/            what training had learned along the way"
	@echo "Worth trying next:"
	@echo "  $(UNRAZE) studio"
	@echo "  $(UNRAZE) sample $(DEMO) -n 64 --greedy"
	@echo "  $(UNRAZE) destroy $(DEMO)/pictures/00000.png"
	@echo "  $(UNRAZE) eval $(DEMO)"

test: $(VENV)/.installed-dev lint ## lint, types, import contract and the tests; ten to twenty minutes
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-full: $(VENV)/.installed-dev lint ## the same, and the slow tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m ""

test-device: $(VENV)/.installed-dev ## what a GPU computes against the processor, DEVICE (cuda)
	UNRAZE_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest -q tests/test_device.py

test-faults: $(VENV)/.installed-dev ## kills, full disks, lost terminals …, by the hundred (docs/reliability.md)
	$(BIN)/python -m pytest -q -n 2 -m faults tests/faults

lint: $(VENV)/.installed-dev ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/.installed-fuzz ## damaged files at every reader, FUZZ_MINUTES (60) for each
	$(BIN)/python tools/fuzz.py all --minutes $(FUZZ_MINUTES)

dist: $(VENV)/.installed-dist ## wheel and source distribution: built twice, compared, looked into
	$(BIN)/python tools/dist.py --out dist

lock: $(VENV)/.installed-dev $(VENV)/.installed-fuzz $(VENV)/.installed-dist ## requirements.lock
	$(BIN)/python tools/lock.py > requirements.lock.part
	mv requirements.lock.part requirements.lock

audit: $(VENV)/.installed-dist ## known holes in what is pinned; asks a service of the network
	$(BIN)/pip-audit --no-deps --disable-pip -r requirements.lock

clean: ## removes .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf build dist src/unraze.egg-info
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Unraze needs Python 3.10 or newer as $(PYTHON): apt-get install python3," \
	    "or make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) comes without venv: apt-get install python3-venv (Debian and Ubuntu)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -c constraints.txt -e ".[studio]"
	@touch $@

$(VENV)/.installed-fuzz $(VENV)/.installed-dist: $(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -c constraints.txt -e ".[$*]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed
