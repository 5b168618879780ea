# Every target sets up what it needs, on a machine with python3 (3.11 or later), make and gcc. Stamp files keep the
# second call quick. PYTHON=python3.12 picks another interpreter for new environments.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
WHEEL := .venv-wheel
BIN := $(VENV)/bin
# Processes that the tests are spread over.
WORKERS ?= 2
PYTEST := -m pytest --numprocesses $(WORKERS) --dist worksteal
# Each of them computes on one thread: threads of several processes would wait for each other in loops.
test test-long coverage test-lowest: export OMP_NUM_THREADS ?= 1
# Python compiles the modules that are imported; compiling all that is installed takes a minute.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

SAMPLE := traces/eplb_traces/samples/moe-435m.parquet

.PHONY: help demo test kernels test-long test-scale coverage mutants fuzz fuzz-bounds test-lowest test-recorder check bench wheel-test browser engines vendor docs clean

help:
	@echo "make demo         plan the shipped trace for 32 ranks and write a file for every engine"
	@echo "make test         the whole test suite"
	@echo "make check        ruff and mypy"
	@echo "make docs         the manual as a site in build/site; a broken link or a missing docstring fails"
	@echo "make bench        quality and speed, as ratios within one run"
	@echo "make coverage     the suite, with the lines that it does not run"
	@echo "make mutants      changes of the judge's code that no test notices"
	@echo "make test-lowest  the fast tests on the lowest allowed versions of the core, with few generated cases"
	@echo "make test-recorder  the recorder's tests on the lowest allowed and the newest transformers"
	@echo "make test-long    the whole test suite with many more generated cases"
	@echo "make test-scale   the tests on a Ray cluster and an S3 server of this machine (one minute)"
	@echo "make fuzz         many random planning cases, checked: EPLB_FUZZ_CASES=100000"
	@echo "make fuzz-bounds  the same with numba's checks of every array index, after some minutes of compiling"
	@echo "make engines      the engines' own code into .engines, for the tests that run our files and policies inside it"
	@echo "make browser      Debian's Chromium, for the tests that open the report page (as root)"
	@echo "make vendor       fetch the JavaScript libraries of the report page again (needs npm)"
	@echo "make wheel-test   build the wheel, install it into an empty environment and use it"

# --- environments -----------------------------------------------------------------------------------------------------

# $(call new_environment,FOLDER): pip is brought up to date first, because pip before 25.1 knows no dependency groups.
define new_environment
	@$(PYTHON) -c 'import sys; sys.exit("eplb needs Python 3.11 or later, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	@test -x $(1)/bin/python || { echo "creating $(1)"; $(PYTHON) -m venv $(1); }
	@$(1)/bin/python $(PIP) --upgrade 'pip>=25.1'
endef

$(VENV)/stamp-pip:
	$(call new_environment,$(VENV))
	@touch $@

$(VENV)/stamp-demo: pyproject.toml | $(VENV)/stamp-pip
	@echo "installing eplb into $(VENV)"
	@$(BIN)/python $(PIP) --editable '.[trace]'
	@touch $@

$(VENV)/stamp-dev: pyproject.toml | $(VENV)/stamp-pip
	@echo "installing eplb and the tools of its tests into $(VENV)"
	@$(BIN)/python $(PIP) --editable . --group dev
	@touch $@ $(VENV)/stamp-demo

# The lower bounds of pyproject.toml, pinned.
LOWEST_PINS = $$($(LOWEST)/bin/python -c "import re, tomllib; print(*(re.sub(r'>=([0-9.]+).*', r'==\1', d) \
	for d in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")

$(LOWEST)/stamp: pyproject.toml
	$(call new_environment,$(LOWEST))
	@echo "installing eplb with" $(LOWEST_PINS) "into $(LOWEST)"
	@$(LOWEST)/bin/python $(PIP) --editable . $(LOWEST_PINS) 'pytest>=9' 'pytest-xdist>=3.6' 'hypothesis>=6.100'
	@touch $@

# --- what a user wants ------------------------------------------------------------------------------------------------

demo: $(VENV)/stamp-demo
	@PATH="$(BIN):$$PATH" SAMPLE=$(SAMPLE) OUT=demo-out sh tests/tools/demo.sh

# --- what a developer wants -------------------------------------------------------------------------------------------

test: kernels
	$(BIN)/python $(PYTEST)

kernels: $(VENV)/stamp-dev
	$(BIN)/python -m eplb cache build

test-long: $(VENV)/stamp-dev
	$(BIN)/python -m eplb cache build
	EPLB_HYPOTHESIS_PROFILE=long $(BIN)/python $(PYTEST)

# Lines of eplb and eplb_traces that the suite runs; fails below 95 %.
coverage: $(VENV)/stamp-dev
	$(BIN)/python -m eplb cache build
	$(BIN)/python $(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

# Changes of single operators and numbers in metrics, bounds, checks and the verifier that no test notices.
mutants: $(VENV)/stamp-dev
	$(BIN)/python tests/tools/mutate.py

test-scale: $(VENV)/stamp-dev
	$(BIN)/python $(PIP) --editable . --group scale
	EPLB_TEST_RAY=1 $(BIN)/python -m pytest tests/traces/scale tests/cli/test_ray_option.py \
		tests/traces/files/test_remote.py

# EPLB_FUZZ_CASES, EPLB_FUZZ_FIRST and EPLB_FUZZ_SECONDS: how many cases, from which number on, and for how long.
fuzz: $(VENV)/stamp-dev
	$(BIN)/python -m eplb cache build
	PYTHONPATH=.:traces:cli $(BIN)/python -m tests.fuzz.run

# numba checks every index of an array; the kernels are compiled anew, into a cache of their own.
fuzz-bounds: export NUMBA_BOUNDSCHECK := 1
fuzz-bounds: export NUMBA_CACHE_DIR := $(CURDIR)/build/numba-boundscheck
fuzz-bounds: export EPLB_FUZZ_CASES ?= 2000
fuzz-bounds: $(VENV)/stamp-dev
	$(BIN)/python -m eplb cache build
	PYTHONPATH=.:traces:cli $(BIN)/python -m tests.fuzz.run

# What differs between versions of a library is seen where the library is used. Strategies use numpy and numba alone: all
# kernels are compiled, the contract of strategies and the golden plans are run; tests of single strategies are left out.
# Kernels have a cache of their own: the numba of one environment does not load the machine code of another.
NOT_LOWEST := --ignore=tests/strategies --ignore=tests/planning
test-lowest: export NUMBA_CACHE_DIR := $(CURDIR)/build/numba-lowest
test-lowest: $(LOWEST)/stamp
	$(LOWEST)/bin/python -m eplb cache build
	EPLB_CORE_ONLY=1 EPLB_HYPOTHESIS_PROFILE=few $(LOWEST)/bin/python $(PYTEST) -m "not slow" $(NOT_LOWEST)

# Skipped with a message where the package registry cannot be reached.
test-recorder: $(VENV)/stamp-dev
	$(BIN)/python tests/tools/recorder_versions.py

check: $(VENV)/stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/stamp-docs: $(VENV)/stamp-dev
	@$(BIN)/python $(PIP) --group docs
	@touch $@

docs: $(VENV)/stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/stamp-dev
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# Without it the tests that open the report page are skipped.
browser:
	command -v chromium && command -v chromedriver || { apt-get update && apt-get install --yes --no-install-recommends \
	chromium chromium-driver; }

# Without it the tests that run inside the engines' own code are skipped.
engines: $(VENV)/stamp-dev
	$(BIN)/python tests/tools/fetch_engines.py

VENDOR := eplb/report/page/vendor
VENDORED := plotly.js-cartesian-dist-min@4.1.1 datatables.net@3.1.5

# npm compares each package with the registry's hash; SHA256SUMS, in the repository, shows what changed.
vendor:
	rm -rf build/vendor && mkdir -p build/vendor
	cd build/vendor && npm install --no-audit --no-fund --ignore-scripts $(VENDORED)
	cp build/vendor/node_modules/plotly.js-cartesian-dist-min/plotly-cartesian.min.js $(VENDOR)/
	cp build/vendor/node_modules/plotly.js-cartesian-dist-min/LICENSE $(VENDOR)/LICENSE-plotly.txt
	cp build/vendor/node_modules/datatables.net/js/dataTables.min.js $(VENDOR)/
	cp build/vendor/node_modules/datatables.net/License.txt $(VENDOR)/LICENSE-datatables.txt
	cd $(VENDOR) && sha256sum *.js LICENSE-*.txt > SHA256SUMS

# -I and a folder of its own: what is imported is the wheel, not the checkout.
wheel-test: $(VENV)/stamp-dev
	rm -rf dist $(WHEEL)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m zipfile --list dist/eplb-*.whl
	$(BIN)/python -m pytest tests/test_packaging.py
	$(call new_environment,$(WHEEL))
	@$(WHEEL)/bin/python $(PIP) dist/eplb-*.whl
	cd $(WHEEL) && bin/eplb --version && bin/python -I -c "import eplb, eplb_traces, eplb_cli; print('imports work')"

clean:
	rm -rf demo-out dist build $(LOWEST) $(WHEEL) .venv-recorder
