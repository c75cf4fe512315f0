#!/usr/bin/env bash
# Once, on the machine with nvcc and torch: compiles Transformer Engine's extension and leaves its wheel, in pieces, in OUT.
#
#   bash PACK/first.sh OUT [TREE]     # TREE: the working tree (default: the folder that you are in); PYTHON, SITE, MAX_JOBS
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
out="${1:?first.sh OUT [TREE]}"
tree="${2:-${PWD}}"
# shellcheck source=tests/gpu/offline/site.sh
source "${here}/site.sh"

mkdir -p -- "${out}"
nvidia="$("${python}" -c 'import nvidia; print(list(nvidia.__path__)[0])')"
for header in cudnn/include/cudnn.h nccl/include/nccl.h; do
  [[ -f "${nvidia}/${header}" ]] || { echo "error: no ${nvidia}/${header}: the extension needs it" >&2; exit 2; }
done
nvcc="$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
export CPATH="${nvidia}/cudnn/include:${nvidia}/nccl/include${CPATH:+:${CPATH}}"
export CUDA_HOME="${CUDA_HOME:-$(dirname -- "$(dirname -- "$(readlink -f -- "${nvcc}")")")}" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
export NVTE_WITH_NCCL_EP=0 NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_FRAMEWORK=pytorch
built="$(mktemp -d)"
"${python}" -m pip wheel --no-build-isolation --no-deps --no-index --wheel-dir "${built}" "${here}"/extension/*.tar.gz
for wheel in "${built}"/*.whl; do
  split --bytes=15M --numeric-suffixes -- "${wheel}" "${out}/$(basename -- "${wheel}")."
  (cd -- "${built}" && sha256sum -- "$(basename -- "${wheel}")") >"${out}/extension.sha256"
done
ls -l -- "${out}"
