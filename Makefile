# Two targets for everyone: `make demo` and `make test`. Both create the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types unit coverage mutation audit-dependencies wheel dist docs linkcheck gpu clean

demo: $(VENV)/demo.stamp
	$(BIN)/invertible-attention reconstruct --dataset photos --quick --output runs/demo --overwrite

test: lint types unit wheel

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/pyright

unit: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal tests
	$(BIN)/python -m pytest -n 2 --doctest-modules src

# The tests once more, measuring what of src/ they reach: at least 95 % of its lines, and of its branches.
coverage: $(VENV)/test.stamp
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report= tests
	$(BIN)/python -m pytest -n 2 --doctest-modules --cov --cov-append --cov-report= src
	$(BIN)/coverage report
	$(BIN)/python scripts/coverage_summary.py --at-least 95 --output results/trust/coverage.json

# The core tests, and compilation of whole graphs, on every supported minor version of PyTorch: make oldest TORCH=2.9
TORCH ?= 2.9 2.10 2.11 2.12 2.13
CORE := tests/attention tests/flows tests/lipschitz tests/logdet tests/solvers tests/test_bijection.py

.PHONY: oldest $(TORCH:%=torch-%)
oldest: $(TORCH:%=torch-%)

$(TORCH:%=torch-%): torch-%: .oldest/%/stamp
	.oldest/$*/bin/python -m pytest -q -n 2 --dist worksteal -p no:cacheprovider -m "compiles or not slow" $(CORE)

.oldest/%/stamp: pyproject.toml
	$(PYTHON) -m venv .oldest/$*
	.oldest/$*/bin/python -m pip install --quiet --disable-pip-version-check "torch==$*.*" --editable . \
		beartype hypothesis numpy pytest pytest-timeout pytest-xdist safetensors scipy
	touch $@

# Tests, benchmark and training step on the device of this machine, in at most 12 minutes; needs PyTorch for it, the
# package and its extras, and no environment of its own: make gpu PYTHON=python
gpu:
	PYTHONPATH=src $(PYTHON) scripts/gpu.py --output results/gpu

# Small changes of the code of the guarantees, made in mutants/, which the tests should notice: about an hour.
mutation: $(VENV)/test.stamp $(VENV)/mutation.stamp
	$(BIN)/python scripts/mutation.py --output results/trust/mutation.json

# What is installed, against the known vulnerabilities; says so where the advisory service cannot be reached.
audit-dependencies: $(VENV)/test.stamp $(VENV)/security.stamp
	$(BIN)/python scripts/audit_dependencies.py

wheel: dist
	rm -rf build/wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel dist/*.whl
	PYTHONPATH=build/wheel $(BIN)/python -c "import invertible_attention as ia; assert 'build/wheel' in ia.__file__, ia.__file__"
	PYTHONPATH=build/wheel build/wheel/bin/invertible-attention --help

# The wheel is built from the source distribution, which has no git: what is missing there fails here.
dist: $(VENV)/test.stamp
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	DISTRIBUTIONS=dist $(BIN)/python -m pytest -q tests/docs/test_distribution.py

# A link inside the site that leads nowhere is a warning, and so an error; the tests look at what was written once more.
docs: $(VENV)/test.stamp $(VENV)/docs.stamp
	$(BIN)/sphinx-build -b html -n -W --keep-going -q docs docs/_build/html
	SITE=docs/_build/html $(BIN)/python -m pytest -q tests/docs

# Links to other sites: needs the network, so it is not part of what a change must pass.
linkcheck: $(VENV)/docs.stamp
	$(BIN)/sphinx-build -b linkcheck -D nb_execution_mode=off -W --keep-going -q docs docs/_build/linkcheck

$(VENV)/python.stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) --editable ".[experiments]"
	touch $@

$(VENV)/test.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) --editable ".[experiments,camouflage,interop,demo,dev]"
	touch $@

# What is left out of the others is an extra of the stamp's name.
$(VENV)/mutation.stamp $(VENV)/security.stamp $(VENV)/docs.stamp: $(VENV)/%.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) .oldest build dist runs docs/_build mutants
