# make demo | test | lint | bench: each creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

# Compare models with the libraries they come from; need TensorFlow.
MODEL_TESTS := tests/models tests/embedding/test_parity.py tests/cli/test_models.py tests/images/test_parity.py

# Run the examples of README and docs, and a notebook in a real Jupyter kernel.
DOCS_TESTS := tests/test_docs.py tests/test_notebook.py

# Need servers that behave, or misbehave, like object stores.
STORE_TESTS := tests/servers tests/storage/test_bucket.py tests/storage/test_connection.py tests/runs/test_buckets.py \
	tests/sources/files/test_objects.py tests/sources/files/test_objects_reading.py

# Start clusters on this machine: Spark, which needs Java 17, and Ray.
ENGINE_TESTS := tests/engines/clusters

.PHONY: help demo smoke test test-docs test-stores test-models test-engines test-long docs lint format bench bench-memory \
	bench-latency bench-update bench-engines bench-peers bench-pca bench-regions quality clean

help:
	@echo "make demo            install, draw an orchard, embed, reduce, train, evaluate, predict (under a minute)"
	@echo "make smoke           install as users do, run the first commands, then the demo"
	@echo "make test            install what the tests need and run them (under 5 minutes)"
	@echo "make test-docs       run the examples of README and docs, and a notebook (1 minute)"
	@echo "make test-stores     test buckets: faults, kills, refusals, a million keys (2 minutes)"
	@echo "make test-models     test models against TensorFlow (4 minutes)"
	@echo "make test-engines    test Spark and Ray on clusters of this machine (5 minutes)"
	@echo "make test-long       the long variants of all tests (about half an hour)"
	@echo "make docs            build the documentation's site in build/site"
	@echo "make lint            ruff check, ruff format --check, mypy --strict"
	@echo "make bench           speed against its limits and against a plain script (7 minutes)"
	@echo "make bench-peers     the same job by Daft, Ray Data, Spark and threads (half an hour)"
	@echo "make bench-memory    memory at 10,000 and 100,000 images, on disk and in a bucket; start-up times"
	@echo "make bench-engines   local, Spark and Ray side by side (5 minutes)"
	@echo "make bench-pca       PCA against scikit-learn's IncrementalPCA (10 minutes)"
	@echo "make bench-regions   precision and recall of several fruits on one image"
	@echo "make bench-update    an update of 100,000 images against the run that embedded them (4 minutes)"
	@echo "make bench-latency   the cost of 20 ms added to every request of a bucket (3 minutes)"
	@echo "make quality         accuracy of reduced and smaller stored features (5 to 12 minutes; needs ../shared)"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit('featurepress needs Python 3.11 or later') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

# Stamp files record what is installed, so that a second call starts at once.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,parity]"
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-engines: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,engines]"
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

# Azure's emulator. Without npm the tests of Azure are skipped.
$(VENV)/azurite/.installed: | $(BIN)/python
	@if command -v npm > /dev/null; then \
		npm install --prefix $(VENV)/azurite --no-audit --no-fund --loglevel=error azurite@3 > /dev/null && touch $@; \
	fi || echo "Azurite cannot be installed: the tests of Azure are skipped"

# The drawn fruit of one kind look much alike: only the nearest count as near-duplicates.
demo: $(VENV)/.installed
	@rm -rf $(DEMO)
	$(BIN)/featurepress demo $(DEMO)/orchard --backgrounds 120
	$(BIN)/featurepress embed $(DEMO)/orchard/Training $(DEMO)/orchard/Test --model embedded --out $(DEMO)/features \
		--labels "{split}/{label}/{name}"
	$(BIN)/featurepress reduce $(DEMO)/features --out $(DEMO)/reduced --n-components 64 --report $(DEMO)/reduced.html
	$(BIN)/featurepress train $(DEMO)/reduced --out $(DEMO)/fruit-model --near-duplicate-threshold 0.99 --regularization 1
	$(BIN)/featurepress evaluate $(DEMO)/fruit-model $(DEMO)/reduced --report $(DEMO)/report.html
	$(BIN)/featurepress predict $(DEMO)/fruit-model $(DEMO)/orchard/Test --out $(DEMO)/predictions --top-k 3
	$(BIN)/featurepress predict $(DEMO)/fruit-model $(DEMO)/orchard/test-multiple_fruits --out $(DEMO)/scenes --tiles --annotate --threshold 0.7
	@echo
	@echo "Open $(DEMO)/report.html (accuracy of the model), $(DEMO)/reduced.html (a map of the images),"
	@echo "$(DEMO)/scenes/annotated/ (several fruits on one image) and $(DEMO)/predictions/predictions/*.parquet"

# Without the development extras, as users install it.
smoke:
	bash .ci/smoke $(PYTHON)

test: $(VENV)/.installed-dev $(VENV)/azurite/.installed
	$(BIN)/python -m pytest --numprocesses auto \
		$(addprefix --ignore=,$(DOCS_TESTS) $(MODEL_TESTS) $(STORE_TESTS) $(ENGINE_TESTS))

test-docs: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto $(DOCS_TESTS)

test-stores: $(VENV)/.installed-dev $(VENV)/azurite/.installed
	$(BIN)/python -m pytest --numprocesses auto $(STORE_TESTS)

test-models: $(VENV)/.installed-parity
	$(BIN)/python -m pytest --numprocesses auto $(MODEL_TESTS)

test-engines: $(VENV)/.installed-engines
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope $(ENGINE_TESTS)

test-long: $(VENV)/.installed-engines $(VENV)/.installed-parity $(VENV)/azurite/.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope -m long tests

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site
	@echo "python3 -m http.server --directory build/site serves it; search works without a network"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.speed

bench-peers: $(VENV)/.installed-engines
	$(BIN)/python -m benchmarks.peers

bench-memory: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.memory --bucket

bench-engines: $(VENV)/.installed-engines
	$(BIN)/python -m benchmarks.engines

bench-pca: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.pca

bench-regions: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.regions --scenes 100

# One thread: two slow each other down where anything else runs.
quality: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality

bench-update: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.update

bench-latency: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.latency

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache
