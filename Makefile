# Two commands do everything on a fresh machine: make quickstart, make test.
# Both set up .venv from this project's own files, and cost nothing that is already done.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-unit test-slow check format leaderboard written docs dist dist-check clean

quickstart: $(VENV)/.train
	$(BIN)/genrec run quickstart

# A process for each core, up to four (each holds torch and transformers, half a gigabyte), one thread in each. A
# process with nothing left takes tests from another; plain pytest runs them one after the other.
TOGETHER := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.dev
	$(TOGETHER)

test-unit: $(VENV)/.dev
	$(TOGETHER) -m "not slow and not gpu and not model and not data and not large and not spark and not ray"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

# mypy follows neither setuptools' package-dir map nor a lenient editable install; a strict one breaks
# "python -m genrec" at the repository root. A tree of links shows it the package as it is installed.
LINKED = rm -rf build/typing && mkdir -p build/typing/genrec && \
	cd build/typing/genrec && ln -s ../../../genrec/* ../../../data_prep ../../../indexing ../../../recipes .

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(LINKED)
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables in README.md, from benchmarks/results/ alone.
leaderboard: $(VENV)/.train
	$(BIN)/python benchmarks/leaderboard.py

# What of docs/ is written from recipes, result files and the pipeline; a test fails where it is not fresh.
written: $(VENV)/.train
	$(BIN)/python docs/build_site.py

# The site, in build/site: nothing in it needs a network when it is read.
docs: $(VENV)/.docs
	$(LINKED)
	$(BIN)/mkdocs build --quiet

# Wheel and sdist, in dist/.
dist: $(VENV)/.dist
	rm -rf dist build/lib
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# Each of them in an empty environment, where it must name its version and run the quickstart, made tiny.
dist-check: dist
	docs/check_dist.sh dist/genrec-*.whl
	docs/check_dist.sh dist/genrec-*.tar.gz

clean:
	rm -rf $(VENV) build dist *.egg-info

# torch first and pinned: a plain "torch" would bring the newest build with gigabytes of CUDA packages
# onto machines without a GPU. Any release from 2.10 on is allowed where you install it yourself.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genrec needs Python 3.11 or newer, $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -e '.[train]'
	touch $@

# Spark's tests run where Java is; PySpark is half a gigabyte, and fetched nowhere else.
$(VENV)/.dev: $(VENV)/.train pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev$$(command -v java >/dev/null && echo ,spark)]"
	touch $@

$(VENV)/.docs: $(VENV)/.train pyproject.toml
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@

$(VENV)/.dist: $(VENV)/.torch
	$(BIN)/pip install --quiet build twine
	touch $@
