# What CI runs is a target here; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DEMO := runs/demo
TEN_CLASSES := --dataset mnist --n-train 10000 --attack pgd --steps 7 --epochs 6 --batch-size 100

.PHONY: help setup demo sweep-demo test test-slow lint docs bench bench-peers bench-compression science validate-suite check clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

setup: $(STAMP) ## Create .venv and install everything

$(STAMP): setup.cfg pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,sweep,formats]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchattacks
	touch $@

demo: $(STAMP) ## Train, attack, compress and attack again on real digits, in about a minute
	$(BIN)/tnn-train --dataset digits --width 32 --epochs 30 --batch-size 32 --eps 0.1 --overwrite --out $(DEMO)
	$(BIN)/tnn-attack $(DEMO)
	$(BIN)/tnn-compress $(DEMO) --rank 4 --finetune 5 --overwrite --out $(DEMO)-rank4
	$(BIN)/tnn-attack $(DEMO)-rank4

sweep-demo: $(STAMP) ## Robustness against tubal rank on real digits, in under two minutes
	$(BIN)/tnn-train --dataset digits --width 32 --epochs 30 --batch-size 32 --eps 0.1 --overwrite --out $(DEMO)
	$(BIN)/tnn-compress $(DEMO) --sweep 1,2,4,8 --whiten --finetune 3 --attack pgd --steps 20 --n 500 \
		--parent pruned --figure $(DEMO)-sweep/sweep.png --csv $(DEMO)-sweep/sweep.csv --overwrite --out $(DEMO)-sweep

bench-compression: $(STAMP) ## Compression's numbers, for RUNS="dense networks of several seeds"
	$(BIN)/python scripts/compression_bench.py $(RUNS)

test: $(STAMP) ## Run the tests (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP) ## Run the long tests too
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tnn_robust cli

docs: $(STAMP) ## Build the documentation site into site/, strictly
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(STAMP) ## Every speed target with reached or missed, half an hour (GPU: not measured without one)
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_gpu.py
	$(BIN)/python scripts/bench_a1.py
	$(BIN)/python scripts/bench_peers.py

SCIENCE := runs/science
science: $(STAMP) ## The paper's claims and three questions it leaves, the quick version (under 20 minutes)
	$(BIN)/tnn-reproduce a1 --match risk --ranks 4,0 --sizes 300,600,1200 --seeds 3 --jobs 2 --overwrite --out $(SCIENCE)/a1-risk
	$(BIN)/tnn-reproduce flow --scale tenth --jobs 2 --overwrite --out $(SCIENCE)/flow
	$(BIN)/tnn-reproduce flow --scale tenth --layers 3,5,8 --seeds 2 --jobs 2 --overwrite --out $(SCIENCE)/flow-depth
	$(BIN)/tnn-reproduce a2 --widths 16 --epochs 10 --lr 1e-1 --seeds 2 --jobs 2 --overwrite --out $(SCIENCE)/a2
	$(BIN)/tnn-reproduce a3 --widths 16 --epochs 10 --lr 1e-1 --seeds 2 --jobs 2 --overwrite --out $(SCIENCE)/a3
	for study in rank transform twin; do \
		$(BIN)/tnn-reproduce $$study --scale tenth --dataset mnist --seeds 3 --jobs 2 --overwrite --out $(SCIENCE)/$$study || exit 1; \
	done
	$(BIN)/python scripts/reproduction_page.py $(SCIENCE)

bench-peers: $(STAMP) ## Install the peers and time an attack against theirs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt eagerpy GitPython requests six
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		foolbox adversarial-robustness-toolbox pyautoattack
	$(BIN)/python scripts/bench_peers.py
	$(BIN)/python scripts/bench_networks.py

validate-suite: $(STAMP) ## Compare the standard suite with pyautoattack, point by point (ten minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt pyautoattack
	$(BIN)/tnn-train $(TEN_CLASSES) --width 28 --norm linf --eps 0.1 --overwrite --out runs/m10
	$(BIN)/tnn-train $(TEN_CLASSES) --width 28 --norm l2 --eps 1.0 --overwrite --out runs/m10-l2
	$(BIN)/tnn-train $(TEN_CLASSES) --width 64 --seed 1 --eps 0.1 --overwrite --out runs/m10-w64
	$(BIN)/python scripts/validate_suite.py runs/m10 --norm linf --eps 0.1
	$(BIN)/python scripts/validate_suite.py runs/m10-l2 --norm l2 --eps 1.5
	$(BIN)/python scripts/validate_suite.py runs/m10-w64 --norm linf --eps 0.1

check: test lint demo ## All that CI runs

clean: ## Remove the environment and the demo's runs
	rm -rf $(VENV) $(DEMO) $(DEMO)-rank4 $(DEMO)-sweep
