# Everything happens in .venv; the first target that needs it makes it from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: run test test-slow check docs wheel examples publish format requirements clean

run: $(READY)  ## the main job: compress the network in the package, with a verdict and a report
	$(BIN)/secateur compress

test: $(READY)  ## every test but the slow ones; under 6 minutes on two quiet cores
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(BIN)/pytest -q -n 2 --dist worksteal -m slow

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY)  ## the documentation site; a warning fails it
	$(BIN)/python -m tools publish --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

publish: $(READY)  ## write the generated blocks of the README, docs/ and results/
	$(BIN)/python -m tools publish

wheel: $(READY)  ## build the wheel, install it alone, run a small job with it
	$(BIN)/python -m tools check_wheel

examples: $(READY)  ## run every example
	for script in examples/*.py; do $(BIN)/python $$script || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

requirements: $(READY)  ## resolve the pins anew, for every supported Python
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --group dev pyproject.toml -o requirements.txt

clean:
	rm -rf .venv runs

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
