# Everything happens in .venv; the first target that needs it makes it from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: run test test-slow check docs wheel examples publish format requirements sbom fuzz-short \
  fuzz clean

# The tool that makes the pins is pinned too.
UV := uv==0.13.9
FUZZ := PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzzing

run: $(READY)  ## the main job: compress the network in the package, with a verdict and a report
	$(BIN)/secateur compress

test: $(READY)  ## every test but the slow ones; less than 6 minutes on two cores
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

requirements:  ## resolve the pins, with hashes, for every supported Python
	$(PYTHON) -m venv .venv/uv
	.venv/uv/bin/pip install --quiet '$(UV)'
	.venv/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --generate-hashes --group dev pyproject.toml -o requirements.txt

sbom: $(READY)  ## the software bill of materials: what is installed, as CycloneDX
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-reproducible --of JSON -o dist/sbom.json $(BIN)/python

fuzz-short: $(READY)  ## fuzz each reader of files from strangers for 20 seconds
	$(FUZZ) --seconds 20 --out .venv/fuzz

fuzz: $(READY)  ## fuzz each for 30 minutes, then try random examples in the property tests
	$(FUZZ) --seconds 1800 --out results/fuzz
	HYPOTHESIS_PROFILE=random $(BIN)/pytest -q -n 2 --dist worksteal tests

clean:
	rm -rf .venv runs

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
