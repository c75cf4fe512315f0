#!/usr/bin/env bash
# The items of tests/gpu on a machine without a network; lines in OUT/acceptance.jsonl.
#
#   bash PACK/run.sh OUT [TREE] [--only ITEMS]     # TREE: the working tree (default: the folder that you are in); PYTHON, SITE
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
out="${1:?run.sh OUT [TREE] [words for tests.gpu.acceptance]}"
tree="${2:-${PWD}}"
shift $(($# > 2 ? 2 : $#))
# shellcheck source=tests/gpu/offline/site.sh
source "${here}/site.sh"

mkdir -p -- "${out}"
pieces=("${here}"/extension/*.whl.[0-9]*)
if [[ -f "${pieces[0]}" ]]; then
  wheel="$(mktemp -d)/$(basename -- "${pieces[0]%.*}")"
  cat -- "${pieces[@]}" >"${wheel}"
  "${python}" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "${site}" "${wheel}"
else
  echo "note: no extension of Transformer Engine was packed (first.sh, then pack --extension): its items will fail or be skipped" >&2
fi
cd -- "${tree}"
exec "${python}" -m tests.gpu.acceptance --out "${out}/acceptance.jsonl" "$@"
