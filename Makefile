# Two commands set everything up on a fresh machine: `make export` and `make test`.
# The oldest supported Python that runs here; `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && exit; \
  done; echo python3.11)
BIN := .venv/bin
INSTALLED := .venv/.installed

# How long `make soak` runs each target, in seconds.
SECONDS_EACH ?= 3600

.PHONY: export test slow bench train lint wheel guard fuzz soak clean

export: $(INSTALLED)  ## export the embedded checkpoint for the iPhone 16 Pro Max, run it here, draw with it
	$(BIN)/snapgen-deploy export --device iphone16pm --overwrite

test: $(INSTALLED)  ## the fast tests
	$(BIN)/pytest -n 2 --dist worksteal

slow: $(INSTALLED)  ## the full-scale tests: minutes to hours
	$(BIN)/pytest -m slow

bench: $(INSTALLED)  ## four of the tables of benchmarks/README.md: scores, kernels, rates, estimates
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m benchmarks.scores
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.rate
	$(BIN)/python -m benchmarks.estimate

train: $(INSTALLED)  ## train the embedded checkpoint again, from nothing
	$(BIN)/python -m examples.shapes.train

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(INSTALLED)  ## build the wheel and try it in empty environments: without extras, to export, to draw
	rm -rf dist build && $(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python tests/wheel_contents.py dist
	.ci/wheel $(PYTHON)

guard: $(INSTALLED)  ## hold this export of the embedded checkpoint against the accepted one, and its speed against the last commit's
	.ci/guard

fuzz: $(INSTALLED)  ## every reader of files against mutated ones, 24 seconds each
	$(BIN)/pip install -q -e '.[fuzz]'
	$(BIN)/python -m fuzz.run --seconds 24

soak: $(INSTALLED)  ## the same for hours
	$(BIN)/pip install -q -e '.[fuzz]'
	nice -n 19 $(BIN)/python -m fuzz.run --seconds $(SECONDS_EACH)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	for extra in coreai qnn sign; do $(BIN)/pip install -q -e ".[$$extra]" || \
	  echo "The extra $$extra does not install here: its target says so, its tests are skipped."; done
	# Triton's schema, for a test. Without its dependencies: it asks for an ml-dtypes older than onnx's.
	$(BIN)/pip install -q --no-deps tritonclient==2.73.0 || echo "tritonclient does not install here: its test is skipped."
	touch $@

clean:
	rm -rf .venv .venv-wheel .venv-runtime build dist bundles *.egg-info
