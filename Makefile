# Every job that a person or CI runs. `make` prints this list.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
RUN := $(VENV)/bin/peft-study
SWEEP ?= quick
FAMILY ?= nano
BASE ?= error-free
SEED ?= 0
DATA ?= gsm8k
QUANT ?= none

.DEFAULT_GOAL := help
.PHONY: help venv sweep smoke plan report publish ui finetune pretrain data-peek bench bench-gpu bench-long bench-quant bench-data test check format clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, but $(PYTHON) is older; say which to use: make PYTHON=python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(RUN) data sample -n 1 --retry-rate 0.5 > /dev/null  # compiles the generator
	@touch $@

venv: $(STAMP)  ## create or update the virtual environment, nothing else

sweep: $(STAMP)  ## run a sweep to table, figure and report, going on where it stopped (SWEEP=quick; REUSE=1 to go on from results/ too, RETRY=1 to run failed trials again)
	@$(RUN) sweep $(SWEEP) $(if $(REUSE),--reuse) $(if $(RETRY),--retry-failed)

smoke: $(STAMP)  ## run a tiny sweep to a figure, in a minute
	@$(RUN) sweep smoke

plan: $(STAMP)  ## print every cell of a sweep, its tokens and the expected minutes (SWEEP=quick; REUSE=1 as in sweep)
	@$(RUN) sweep $(SWEEP) --plan $(if $(REUSE),--reuse)

report: $(STAMP)  ## write the HTML and Markdown report of a sweep (SWEEP=quick)
	@$(RUN) report $(SWEEP)

publish: $(STAMP)  ## copy a sweep's table, report and figures to results/ (SWEEP=quick)
	@$(RUN) publish $(SWEEP)

ui: $(STAMP)  ## open MLflow on 127.0.0.1 on the runs of this folder
	@$(RUN) ui

finetune: $(STAMP)  ## fine-tune any causal language model (MODEL=hub name or folder DATA=gsm8k|igsm|file QUANT=nf4|int8|none ARGS='key=value ...')
	@$(if $(MODEL),,$(error MODEL must be a Hub name or a folder, as in make finetune MODEL=Qwen/Qwen3-0.6B DATA=gsm8k))
	@$(RUN) finetune --model $(MODEL) --data $(DATA) --quant $(QUANT) $(ARGS)

pretrain: $(STAMP)  ## pretrain a base from scratch (FAMILY=nano BASE=error-free|retry SEED=0)
	@$(RUN) pretrain --family $(FAMILY) --base $(BASE) --seed $(SEED)

bench: $(STAMP)  ## measure training and generation beside what one would otherwise take, a quarter of an hour
	@$(VENV)/bin/python -m benchmarks.throughput

bench-gpu: $(STAMP)  ## measure the same at the sizes that an NVIDIA GPU is for
	@$(VENV)/bin/python -m benchmarks.throughput --gpu

bench-long: $(STAMP)  ## measure whole sweeps beside Optuna with peft and transformers, about an hour
	@$(VENV)/bin/python -m benchmarks.long

bench-quant: $(STAMP)  ## measure a LoRA step over a quantised base beside a plain one, five minutes
	@$(VENV)/bin/python -m benchmarks.quantized

bench-data: $(STAMP)  ## measure how fast problems are generated, beside what a trainer reads
	@$(VENV)/bin/python -m benchmarks.data

data-peek: $(STAMP)  ## print problems with mistakes, retractions and loss mask in colour
	@$(RUN) data show

test: $(STAMP)  ## run the tests
	@$(VENV)/bin/python -m pytest

check: $(STAMP)  ## check format, lint and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/pyright

format: $(STAMP)  ## format the code
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

clean:  ## remove the virtual environment and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
