# Every target sets up .venv first; that is quick when nothing changed.
PYTHON ?= python3
JOBS ?= 2
DIST ?= dist
BIN := .venv/bin

# A page fault is dear on virtual machines: freed memory is kept instead of returned (up to 6 times faster).
MALLOC := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
TEST_ENV := $(MALLOC) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test test-all test-vllm wheel gguf lm-eval clients models lint format-cpp venv clean

demo: venv
	$(MALLOC) $(BIN)/stratakv demo

test: venv
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-all: venv gguf lm-eval clients models
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -m "not vllm and not sweep" $(PYTEST_ARGS)
	$(MAKE) --no-print-directory test-vllm

# the plugin inside vLLM, in an environment of its own: 3.5 GB of packages, about 3 minutes, and 4 for the tests
test-vllm: .venv-vllm/.ready
	$(TEST_ENV) .venv-vllm/bin/python -m pytest -m vllm --confcutdir tests/vllm_plugin tests/vllm_plugin $(PYTEST_ARGS)

.venv-vllm/.packages: tests/vllm_plugin/requirements.txt
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -q $(VLLM_PIP_ARGS) -r $<
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec  # not for a torch without CUDA
	touch $@

.venv-vllm/.ready: .venv-vllm/.packages pyproject.toml CMakeLists.txt $(wildcard stratakv/*/cpu/*.cpp stratakv/*/cpu/*.h)
	.venv-vllm/bin/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -C build-dir=build/vllm -e .
	touch $@

# for this Python and kind of machine, the compiled module inside; to install it takes no compiler
wheel: venv
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w $(DIST) $(WHEEL_ARGS) .
	@ls $(DIST)/stratakv-*.whl

# two models of other people, 350 MB, for the tests marked `real`; their licences are their own
models: venv
	$(BIN)/python tools/fetch_models.py

# llama.cpp as a peer: built from source, some minutes, so `make test` leaves what needs it out
gguf: venv
	$(BIN)/python -c "import llama_cpp" 2>/dev/null || $(BIN)/python -m pip install -c constraints.txt llama-cpp-python

# EleutherAI's harness with what it needs, 400 MB: `make test` leaves its tests out without it
lm-eval: venv
	$(BIN)/python -c "import lm_eval" 2>/dev/null || $(BIN)/python -m pip install -c constraints.txt -e '.[dev,serve,lm-eval]'

# twelve programs that talk to servers, in an environment of their own: one gigabyte
clients: .venv-clients/.ready

.venv-clients/.ready: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check -q -r tests/clients/requirements.txt
	touch $@

CPP = $(shell git ls-files '*.cpp' '*.h')

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format-cpp: venv
	$(BIN)/clang-format -i $(CPP)

venv:
	@PYTHON="$(PYTHON)" tools/setup_venv.sh

clean:
	rm -rf .venv .venv-clients .venv-vllm build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache demo-results* demo-tuned* stratakv-runs
	find stratakv tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
