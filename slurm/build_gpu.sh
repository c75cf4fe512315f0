#!/usr/bin/env bash
# The GPU environment: torch, megatron-core, NeMo, Transformer Engine, vLLM, in the versions of constraints-gpu-*.txt.  In a
# container (Dockerfile, vold.def) or on a login node with a CUDA toolkit (nvcc) and a C++ compiler; no GPU is needed.
#
#   bash slurm/build_gpu.sh FOLDER_OF_THE_ENVIRONMENT [FOLDER_OF_THE_REPOSITORY]
#
#   CUDA              13.0 | 12.9 (default: what nvcc is of).  13.0 wants a driver from 580 on, 12.9 from 525 on.
#   PYTHON            interpreter, 3.11 or 3.12 (default: python3)
#   MAX_JOBS          compilers at a time, each up to 8 GB (default: 4)
#   WITH_VLLM=0       leaves vLLM out
#   WITH_APEX=1       also compiles NVIDIA's apex (fused Adam, gradient-accumulation fusion), from APEX_SOURCE, a checkout of it.
#                     The package of that name on PyPI is something else.
#   TORCH_CUDA_ARCH_LIST   what apex compiles for: 8.0 (A100), 9.0 (H100, H200), 10.0 (B200); default "8.0;9.0;10.0"
#   WITHOUT_PROJECT=1 only what the project needs: its code is found by PYTHONPATH (containers)
#   TORCH_INDEX       CUDA 12.9: a mirror of PyTorch's index of CUDA 12.9 builds (default: that index itself, as uv knows it)
#   VLLM_WHEEL        CUDA 12.9: vLLM's wheel for it, a file or an address (default: that of vLLM's release)
set -euo pipefail

usage() { sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
refuse() { printf 'error: %s\n  mend: %s\n' "$1" "$2" >&2; exit 2; }

[[ $# -ge 1 ]] || usage
folder="$1"
repository="${2:-$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)}"
python="${PYTHON:-python3}"

# Everything that can be known to be wrong is said before the first download.
[[ "$(uname -sm)" == "Linux x86_64" ]] || refuse "this is $(uname -sm)" "the versions are pinned for Linux on x86_64"
glibc="$(getconf GNU_LIBC_VERSION 2>/dev/null || true)" # "glibc 2.36"
older="$(printf '2.31\n%s\n' "${glibc##* }" | sort -V | head -n 1)"
[[ "${older}" == 2.31 ]] ||
  refuse "${glibc:-no glibc} here" "vLLM's libraries want glibc 2.31 or newer: use a container (slurm/vold.def)"
command -v "${python}" >/dev/null || refuse "no ${python}" "set PYTHON to a Python 3.11 or 3.12"
version="$("${python}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
[[ "${version}" == 3.11 || "${version}" == 3.12 ]] ||
  refuse "${python} is Python ${version}" "set PYTHON to a Python 3.11 or 3.12"
headers='import ensurepip, os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
"${python}" -c "${headers}" 2>/dev/null ||
  refuse "${python} has no ensurepip or no Python.h" "install python${version}-venv and python${version}-dev"
command -v nvcc >/dev/null || refuse "no nvcc" "load the CUDA toolkit first: module load cuda"
toolkit="$(nvcc --version | sed -n 's/^.*release \([0-9.]*\),.*$/\1/p')"
case "${CUDA:-${toolkit}}" in
  13.0) cuda=13.0 ;;
  12.9) cuda=12.9 ;;
  13.*) [[ -n "${CUDA:-}" ]] || cuda=13.0 ;;
  12.*) [[ -n "${CUDA:-}" ]] || cuda=12.9 ;;
esac
[[ -n "${cuda:-}" ]] ||
  refuse "CUDA = ${CUDA:-${toolkit:-unknown}}" "there are environments for 13.0 and 12.9: set CUDA, load a toolkit of it"
[[ "${toolkit%%.*}" == "${cuda%%.*}" ]] ||
  refuse "nvcc is of CUDA ${toolkit}, the environment of ${cuda}" "load a toolkit of CUDA ${cuda}, or set CUDA"
[[ "${WITH_APEX:-0}" != 1 || "${toolkit}" == "${cuda}" ]] ||
  refuse "nvcc is of CUDA ${toolkit}, torch of ${cuda}: apex wants the same" "load CUDA ${cuda}, or leave WITH_APEX out"
compiler="${CXX:-c++}"
command -v "${compiler}" >/dev/null ||
  refuse "no C++ compiler ${compiler}" "load one (module load gcc), or set CXX; GCC 9 or newer"
[[ "${WITH_APEX:-0}" != 1 || -f "${APEX_SOURCE:-}/csrc/amp_C_frontend.cpp" ]] ||
  refuse "APEX_SOURCE = ${APEX_SOURCE:-(not set)} is no checkout of NVIDIA's apex" \
    "git clone https://github.com/NVIDIA/apex, and set APEX_SOURCE to that folder"
pins="${repository}/constraints-gpu-cu${cuda/./}.txt"
[[ -f "${pins}" ]] || refuse "no ${pins}" "give the folder of the repository as the second argument"
room() { # room GB FOLDER WHAT MEND
  local there="$2" free
  while [[ ! -d "${there}" ]]; do there="$(dirname -- "${there}")"; done
  free="$(df --output=avail -k -- "${there}" | tail -n 1)"
  ((free >= $1 * 1000000)) || refuse "$((free / 1000000)) GB free in ${there}" "$3 takes about $1 GB: free some, or $4"
}
# 4.4 GB of wheels (their sizes in the index), some 10 GB unpacked (an estimate), and what is compiled.
room 16 "${folder}" "the environment" "give another folder"
room 6 "${TMPDIR:-/tmp}" "what is downloaded and compiled" "set TMPDIR"

unset PIP_CONSTRAINT PIP_REQUIRE_VIRTUALENV # such as those of NVIDIA's containers: they pin another torch
[[ -x "${folder}/bin/python" ]] || "${python}" -m venv "${folder}"
pip() { "${folder}/bin/python" -m pip "$@"; }

pip install --upgrade pip==26.3 # as in .ci/tools.txt
pip install --constraint "${pins}" setuptools wheel ninja pybind11 cmake packaging
if [[ "${cuda}" == 13.0 ]]; then
  pip install --constraint "${pins}" torch torchvision torchaudio
elif [[ -n "${TORCH_INDEX:-}" ]]; then
  pip install --constraint "${pins}" --extra-index-url "${TORCH_INDEX}" \
    torch==2.13.0+cu129 torchvision==0.28.0+cu129 torchaudio==2.11.0+cu129
else
  pip install uv # it knows where PyTorch keeps the builds for each CUDA
  "${folder}/bin/python" -m uv pip install --python "${folder}/bin/python" --torch-backend cu129 --constraint "${pins}" \
    torch torchvision torchaudio
fi
# What comes next asks for torch 2.13.0, and a build of another CUDA would do for pip: never go on with that.
found="$("${folder}/bin/python" -c 'import torch; print(torch.version.cuda)')"
[[ "${found}" == "${cuda}" ]] ||
  refuse "torch for CUDA ${found} is in ${folder}, not for ${cuda}" \
    "remove the folder if it was there before (pip keeps a torch of that version), else look at pip's index: pip config list"

extras=dev
if [[ "${WITH_VLLM:-1}" != 0 ]]; then
  extras=dev,vllm
  wheel="https://github.com/vllm-project/vllm/releases/download/v0.32.0/vllm-0.32.0+cu129-cp38-abi3-manylinux_2_28_x86_64.whl"
  [[ "${cuda}" == 13.0 ]] || pip install --constraint "${pins}" "${VLLM_WHEEL:-${wheel}}"
fi
pip install --constraint "${pins}" --editable "${repository}[${extras}]"

# Transformer Engine's core is a wheel; its extension for torch is compiled here and never fetched: one for another torch may
# import and fail in its first call.  --no-build-isolation: the build must see the torch above.  cudnn.h, nccl.h: torch's own.
headers="$("${folder}/bin/python" - <<'PY'
import nvidia, pathlib  # noqa: E401

found = (folder for base in nvidia.__path__ for folder in sorted(pathlib.Path(base).glob("*/include")))
print(":".join(str(folder) for folder in found if (folder / "cudnn.h").exists() or (folder / "nccl.h").exists()))
PY
)"
home="$(dirname -- "$(dirname -- "$(readlink -f -- "$(command -v nvcc)")")")"
[[ -n "${CUDA_HOME:-}" || ! -f "${home}/include/cuda_runtime.h" ]] || export CUDA_HOME="${home}"
export CPATH="${headers}${CPATH:+:${CPATH}}" MAX_JOBS="${MAX_JOBS:-4}"
export NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_WITH_NCCL_EP=0
pip uninstall --yes transformer-engine-torch # one that was compiled for an earlier torch would do for pip
pip install --no-build-isolation --no-cache-dir --constraint "${pins}" --editable "${repository}[gpu]"
if [[ "${WITH_APEX:-0}" == 1 ]]; then
  export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0;10.0}"
  APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --verbose --no-build-isolation --no-cache-dir "${APEX_SOURCE}"
fi
# For recipes and doctor: an exchanged torch is noticed (vold_nemo/config/installed.py).
"${folder}/bin/python" - <<'PY'
import importlib.metadata, json, pathlib, sys  # noqa: E401

there = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
record = {name: there[name] for name in ("torch", "transformer-engine-torch", "apex") if name in there}
pathlib.Path(sys.prefix, "compiled.json").write_text(json.dumps(record) + "\n")
PY
[[ "${WITHOUT_PROJECT:-0}" != 1 ]] || pip uninstall --yes vold-nemo
pip check
"${folder}/bin/python" - <<'PY'
import ctypes, sys  # noqa: E401

import torch

print("torch", torch.__version__, "CUDA", torch.version.cuda)
try:
    import transformer_engine.pytorch  # noqa: F401
except Exception as error:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        print("Transformer Engine was not tried: no NVIDIA driver here.  On a GPU node: python recipes/doctor.py")
    else:
        sys.exit(f"error: Transformer Engine does not import: {type(error).__name__}: {error}")
else:
    print("Transformer Engine imports")
PY
