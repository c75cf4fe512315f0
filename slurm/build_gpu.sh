#!/usr/bin/env bash
# The GPU environment: torch, megatron-core, NeMo, Transformer Engine, vLLM.  In a container (vold.def) or on a login node with a
# CUDA toolkit (nvcc) and a C++ compiler; no GPU is needed.
#
#   bash slurm/build_gpu.sh FOLDER_OF_THE_ENVIRONMENT [FOLDER_OF_THE_REPOSITORY]
#
#   PYTHON            interpreter, 3.11 or 3.12 (default: python3)
#   NVTE_CUDA_ARCHS   what to compile for: 80 (A100), 90 (H100, H200), 100 (B200); default "80;90"
#   MAX_JOBS          compilers at a time, each up to 8 GB (default: 4)
#   WITH_VLLM=0       leaves vLLM out
#   WITH_APEX=1       also compiles NVIDIA's apex (fused Adam, gradient-accumulation fusion), from APEX_SOURCE, a checkout of it.
#                     The package of that name on PyPI is something else.
set -euo pipefail

[[ $# -ge 1 ]] || { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
folder="$1"
repository="${2:-$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)}"
command -v nvcc >/dev/null || { echo "error: no nvcc: load the CUDA toolkit first (module load cuda)" >&2; exit 2; }
export NVTE_FRAMEWORK=pytorch NVTE_CUDA_ARCHS="${NVTE_CUDA_ARCHS:-80;90}" MAX_JOBS="${MAX_JOBS:-4}"

[[ -x "${folder}/bin/python" ]] || "${PYTHON:-python3}" -m venv "${folder}"
pip() { "${folder}/bin/python" -m pip "$@"; }

pip install --upgrade pip setuptools wheel ninja pybind11 cmake
pip install torch==2.13.0
extras=dev
[[ "${WITH_VLLM:-1}" == 0 ]] || extras=dev,vllm
pip install --constraint "${repository}/constraints.txt" --editable "${repository}[${extras}]"
# --no-build-isolation: the build must see the torch above, not one of its own.
pip install --no-build-isolation --constraint "${repository}/constraints.txt" --editable "${repository}[gpu]"
if [[ "${WITH_APEX:-0}" == 1 ]]; then
  pip install --no-build-isolation --config-settings=--build-option=--cpp_ext --config-settings=--build-option=--cuda_ext \
    "${APEX_SOURCE:?WITH_APEX=1 needs APEX_SOURCE, a checkout of github.com/NVIDIA/apex}"
fi
"${folder}/bin/python" - <<'PY'
import torch, transformer_engine.pytorch  # noqa: F401, E401

print("torch", torch.__version__, "CUDA", torch.version.cuda)
PY
