# make demo and make test each work on a machine that has only Python (3.11 or newer) and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_VENV ?= .venv-demo
DEMO_READY := $(DEMO_VENV)/.ready
SERVER_VENV ?= .venv-server
SERVER_READY := $(SERVER_VENV)/.ready
BASE_VENV ?= .venv-base
BASE_READY := $(BASE_VENV)/.ready
RUNTIME_VENV ?= .venv-runtime
RUNTIME_READY := $(RUNTIME_VENV)/.ready
PIP := -m pip install --quiet --disable-pip-version-check
DOCS_BUILD := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
REPORTS := --modelserve-json .modelserve/evidence.json --modelserve-html .modelserve/evidence.html
# Neighboring tests share fixtures: each process takes one half of the suite, and then tests of the other.
PARALLEL ?= -n 2 --dist worksteal

.PHONY: help demo demo-all docs dist servers test test-base runtime lint format bench clean

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_READY)  ## run one model's gates, from training to verdicts, as a user would install them
	@echo "Release and monitoring gates of a network for handwritten digits:"
	@$(DEMO_VENV)/bin/pytest example_models/digits_cnn -q --no-header $(REPORTS)
	@echo "Read the report: .modelserve/evidence.html"

demo-all: $(READY)  ## run the gates of every example model on real data
	@$(BIN)/pytest example_models -q --no-header $(REPORTS)

dist: $(READY)  ## build wheel and sdist into dist, and check them as the package index does
	@$(BIN)/python $(PIP) --group dist
	@rm -rf dist
	@$(BIN)/python -m build -q .
	@$(BIN)/twine check --strict dist/*

servers: $(SERVER_READY)  ## install the inference servers that tests start, in an environment of their own

test: $(READY)  ## run the whole suite (PARALLEL= for one process)
	@$(MAKE) --no-print-directory servers || echo "No inference servers: the tests that start them are skipped."
	SERVER_VENV=$(SERVER_VENV) $(BIN)/pytest $(PARALLEL) -q

test-base: $(BASE_READY)  ## run the tests that need no extra, in an environment without extras (PYTHON=python3.13)
	$(BASE_VENV)/bin/pytest tests $(PARALLEL) -q

runtime: $(RUNTIME_READY)  ## make an environment with an older onnxruntime, which `make test` then uses as well

lint: $(READY)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(DOCS_BUILD) --quiet

docs: $(READY)  ## build the documentation into build/site, with every warning an error
	@$(BIN)/python docs/generate.py
	@$(DOCS_BUILD)

format: $(READY)  ## write the generated files and put the code into its one format
	$(BIN)/python docs/generate.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## print every figure that the project claims, each as a ratio within one run
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/predict_overhead.py
	$(BIN)/python benchmarks/endpoint_overhead.py
	$(BIN)/python benchmarks/frame_inputs.py
	$(BIN)/python benchmarks/demo_twice.py
	$(BIN)/python -m benchmarks.store_hits
	$(BIN)/python benchmarks/signed_mutants.py
	$(BIN)/python -m benchmarks.compress_overhead
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/python benchmarks/output_parity.py
	$(BIN)/python benchmarks/latency_gates.py
	$(BIN)/python -m benchmarks.latency_peers
	$(BIN)/python -m benchmarks.leak_gate
	$(BIN)/python benchmarks/dependent_quantiles.py
	$(BIN)/python benchmarks/load_intervals.py
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python -m benchmarks.onnx_inputs
	$(BIN)/python -m benchmarks.planted_faults
	$(BIN)/python -m benchmarks.relation_runs
	$(BIN)/python -m benchmarks.localization
	$(BIN)/python -m benchmarks.localization_time
	$(BIN)/python -m benchmarks.selftest
	$(BIN)/python -m benchmarks.training_resume --kills 5
	$(BIN)/python -m benchmarks.training_processes
	$(BIN)/python -m benchmarks.privacy_audit --epsilon 2 --runs 3 --honest 3
	$(BIN)/python -m benchmarks.quantized_certificates
	$(BIN)/python -m benchmarks.quantized_rounding
	$(BIN)/python -m benchmarks.vnnlib
	$(BIN)/python -m benchmarks.certificate_soundness --rows 10 --tries 100000 --seconds 2
	$(BIN)/python benchmarks/onnx_cases.py
	$(BIN)/python benchmarks/sklearn_cases.py
	$(BIN)/python -m benchmarks.bad_files
	$(BIN)/python benchmarks/error_rates.py
	$(BIN)/python benchmarks/drop_error_rates.py
	$(BIN)/python benchmarks/typical_discordance.py
	$(BIN)/python benchmarks/metric_error_rates.py
	$(BIN)/python benchmarks/regression_error_rates.py
	$(BIN)/python benchmarks/tuning_selection.py --searches 300
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/drift_error_rates.py
	$(BIN)/python benchmarks/drift_families.py --worlds 200
	$(BIN)/python benchmarks/quality_error_rates.py
	$(BIN)/python benchmarks/monitor_lives.py --lives 200
	$(BIN)/python -m benchmarks.gradient_attack --repeats 1
	$(BIN)/python -m benchmarks.certified_digits --eps 0.16 --repeats 1
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.distillation
	$(BIN)/python -m benchmarks.quantization_aware
	$(BIN)/python -m benchmarks.extraction
	$(BIN)/python -m benchmarks.drift_peers
	$(BIN)/python benchmarks/drift_scale.py

# An open torch range pulls several GB of CUDA packages; constraints.txt pins the version whose CPU wheel is taken.
$(READY): pyproject.toml constraints.txt
	@echo "Installing the development environment into $(VENV), a few minutes once ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) --upgrade "pip>=25.1"
	@$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

$(DEMO_READY): pyproject.toml constraints.txt
	@echo "Installing what a user installs into $(DEMO_VENV), a minute once ..."
	@test -x $(DEMO_VENV)/bin/python || $(PYTHON) -m venv $(DEMO_VENV)
	@$(DEMO_VENV)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(DEMO_VENV)/bin/python $(PIP) --constraint constraints.txt --editable ".[torch,compress,data,robustness]"
	@touch $@

# MLServer needs Python below 3.13 and protobuf below 7: its environment has nothing of this package.
$(SERVER_READY): fixtures/server/requirements.txt
	@echo "Installing inference servers into $(SERVER_VENV), a minute once ..."
	@test -x $(SERVER_VENV)/bin/python || $(PYTHON) -m venv $(SERVER_VENV)
	@$(SERVER_VENV)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(SERVER_VENV)/bin/python $(PIP) --requirement $<
	@touch $@

$(BASE_READY): pyproject.toml
	@echo "Installing the package without extras into $(BASE_VENV), a minute once ..."
	@test -x $(BASE_VENV)/bin/python || $(PYTHON) -m venv $(BASE_VENV)
	@$(BASE_VENV)/bin/python $(PIP) --upgrade "pip>=25.1"
	@$(BASE_VENV)/bin/python $(PIP) --editable . pytest-xdist
	@touch $@

# Beside an older onnxruntime the older major version of numpy, where there are wheels of both.
$(RUNTIME_READY):
	@test -x $(RUNTIME_VENV)/bin/python || $(PYTHON) -m venv $(RUNTIME_VENV)
	@$(RUNTIME_VENV)/bin/python $(PIP) \
		"onnxruntime==1.19.2; python_version < '3.13'" "numpy<2; python_version < '3.13'" \
		"onnxruntime==1.22.1; python_version >= '3.13'"
	@touch $@

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) $(DEMO_VENV) $(SERVER_VENV) $(BASE_VENV) $(RUNTIME_VENV) .modelserve .pytest_cache .mypy_cache .ruff_cache
