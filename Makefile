# make demo | test | lint | bench: each makes what it needs, first of all .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What holds models against the libraries that they come from: TensorFlow is needed, and minutes.
MODEL_TESTS := tests/models tests/embedding/test_parity.py tests/cli/test_models.py tests/images/test_parity.py

# What needs servers that behave, and misbehave, like object stores, for minutes.
STORE_TESTS := tests/servers tests/storage/test_bucket.py tests/storage/test_connection.py tests/runs/test_buckets.py \
	tests/sources/files/test_objects.py tests/sources/files/test_objects_reading.py

# What starts clusters on this machine: Spark, which needs Java 17, and Ray. Minutes, and some hundred megabytes.
ENGINE_TESTS := tests/engines/clusters

.PHONY: help demo test test-stores test-models test-engines lint format bench bench-memory bench-latency bench-update bench-engines bench-peers bench-pca bench-regions quality clean

help:
	@echo "make demo     install, draw an orchard, embed, reduce, train, evaluate, predict; says where to look (under a minute)"
	@echo "make test     install what the tests need, run them (about 5 minutes)"
	@echo "make test-stores     the tests of buckets: faults, kills, refusals, a million keys (about 3 minutes)"
	@echo "make test-models     the tests of models, with TensorFlow to hold them against (about 5 minutes)"
	@echo "make test-engines    the tests of Spark and Ray, on clusters of this machine (about 11 minutes)"
	@echo "make lint     ruff check, ruff format --check, mypy --strict"
	@echo "make bench    measure speed against its limits and against a plain script (about 7 minutes)"
	@echo "make bench-peers    the same job by Daft, Ray Data, Spark and threads, each in its environment (half an hour)"
	@echo "make bench-memory    measure memory at 10,000 and 100,000 pictures, on disk and in a bucket, start-up times"
	@echo "make bench-engines    measure the engines side by side: local, Spark, Ray (5 minutes)"
	@echo "make bench-pca    PCA beside scikit-learn's IncrementalPCA (10 minutes)"
	@echo "make bench-regions    how many of the fruits on drawn scenes are found, and by which threshold"
	@echo "make quality  accuracy of features as they are reduced and stored in fewer bytes (5 to 12 minutes; needs ../shared)"
	@echo "make bench-update    measure an update of 100,000 pictures beside the run that made them (4 minutes)"
	@echo "make bench-latency    measure what 20 ms added to every request of a bucket cost (3 minutes)"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit('featurepress needs Python 3.11 or later') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

# Stamps say what is installed, so that a second call starts at once.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,parity]"
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

$(VENV)/.installed-engines: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,engines]"
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

# Azure's emulator, where npm is there to install it: without it the tests of Azure are skipped.
$(VENV)/azurite/.installed: | $(BIN)/python
	@if command -v npm > /dev/null; then \
		npm install --prefix $(VENV)/azurite --no-audit --no-fund --loglevel=error azurite@3 > /dev/null && touch $@; \
	fi || echo "Azurite cannot be installed: the tests of Azure are skipped"

# Pictures of one kind are drawn by one recipe and look much alike: only the nearest are taken for near-duplicates.
demo: $(VENV)/.installed
	@rm -rf demo
	$(BIN)/featurepress demo demo/orchard --backgrounds 120
	$(BIN)/featurepress embed demo/orchard/Training demo/orchard/Test --model embedded --out demo/features \
		--labels "{split}/{label}/{name}"
	$(BIN)/featurepress reduce demo/features --out demo/reduced --components 64 --report demo/reduced.html
	$(BIN)/featurepress train demo/reduced --out demo/fruit-model --near-duplicate-threshold 0.99 --regularization 1
	$(BIN)/featurepress evaluate demo/fruit-model demo/reduced --report demo/report.html
	$(BIN)/featurepress predict demo/fruit-model demo/orchard/Test --out demo/predictions --top-k 3
	$(BIN)/featurepress predict demo/fruit-model demo/orchard/test-multiple_fruits --out demo/scenes --tiles --annotate --threshold 0.7
	@echo
	@echo "look at demo/report.html (how well the model tells fruit), demo/reduced.html (a map of the pictures),"
	@echo "demo/scenes/annotated/ (several fruits on one picture) and demo/predictions/predictions/*.parquet"

test: $(VENV)/.installed-dev $(VENV)/azurite/.installed
	$(BIN)/python -m pytest --numprocesses auto $(addprefix --ignore=,$(MODEL_TESTS) $(STORE_TESTS) $(ENGINE_TESTS))

test-stores: $(VENV)/.installed-dev $(VENV)/azurite/.installed
	$(BIN)/python -m pytest --numprocesses auto $(STORE_TESTS)

test-models: $(VENV)/.installed-parity
	$(BIN)/python -m pytest --numprocesses auto $(MODEL_TESTS)

test-engines: $(VENV)/.installed-engines
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope $(ENGINE_TESTS)

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

# One thread: two get in each other's way where anything else runs.
quality: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality

bench-update: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.update

bench-latency: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.latency

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache
