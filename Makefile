# make demo and make test each work on a machine that has only Python (3.11 or newer) and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARALLEL ?= -n 2

.PHONY: help demo test lint format bench clean

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## run the release and monitoring gates of the example models on real data
	$(BIN)/pytest example_models -q --modelserve-json .modelserve/evidence.json --modelserve-html .modelserve/evidence.html

test: $(READY)  ## run the whole suite (PARALLEL= for one process)
	$(BIN)/pytest $(PARALLEL) -q

lint: $(READY)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## write the stub for editors and put the code into its one format
	$(BIN)/python docs/generate.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## print every figure that the project claims, each as a ratio within one run
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/predict_overhead.py
	$(BIN)/python benchmarks/demo_twice.py
	$(BIN)/python -m benchmarks.store_hits
	$(BIN)/python -m benchmarks.compress_overhead
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/python benchmarks/output_parity.py
	$(BIN)/python benchmarks/latency_gates.py
	$(BIN)/python -m benchmarks.latency_peers
	$(BIN)/python -m benchmarks.leak_gate
	$(BIN)/python benchmarks/dependent_quantiles.py
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/python -m benchmarks.onnx_inputs
	$(BIN)/python -m benchmarks.planted_faults
	$(BIN)/python -m benchmarks.relation_runs
	$(BIN)/python -m benchmarks.localization
	$(BIN)/python -m benchmarks.localization_time
	$(BIN)/python benchmarks/onnx_cases.py
	$(BIN)/python benchmarks/sklearn_cases.py
	$(BIN)/python benchmarks/error_rates.py
	$(BIN)/python benchmarks/drop_error_rates.py
	$(BIN)/python benchmarks/metric_error_rates.py
	$(BIN)/python benchmarks/regression_error_rates.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/drift_error_rates.py
	$(BIN)/python benchmarks/drift_families.py --worlds 200
	$(BIN)/python benchmarks/quality_error_rates.py
	$(BIN)/python -m benchmarks.drift_peers
	$(BIN)/python benchmarks/drift_scale.py

# An open torch range pulls several GB of CUDA packages; constraints.txt pins the version whose CPU wheel is taken.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) .modelserve .pytest_cache .mypy_cache .ruff_cache
