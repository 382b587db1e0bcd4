# Everything here sets up what it needs: a virtual environment with the exact versions of infra/requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench ui lint links lock clean

demo: links
	$(BIN)/dataworth demo

# Whole systems also wait: two tests of each core at once.
test: links
	$(BIN)/python -m pytest -m "not gpu and not long" --numprocesses 4 --dist loadgroup --no-loadscope-reorder

bench: links
	$(BIN)/python -m pytest -m "long and not gpu" --numprocesses 2 --dist loadfile
	$(BIN)/python -m tests.bench

ui: links
	$(BIN)/dataworth ui

lint: links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell flows tasks storage tests infra README.md CHANGELOG.md Makefile pyproject.toml

$(READY): infra/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r infra/requirements.lock
	touch $(READY)

# What is installed is one package, whose modules link to the files here: new files need new links.
links: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    --config-settings editable_mode=strict --editable .

# The lock is what a fresh environment resolves to; run it on a machine with nothing installed.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	# A reference of the tests. It asks for torchvision, which it does not use and which would replace torch.
	$(BIN)/python -m pip install --quiet --no-deps kronfluence==1.0.1 einconv==0.1.0 opt_einsum==3.4.0
	# What conversations are held against: it needs nothing that is not there.
	$(BIN)/python -m pip install --quiet --no-deps trl==1.16.0
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' > infra/requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
