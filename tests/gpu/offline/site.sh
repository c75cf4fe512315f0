# shellcheck shell=bash
# Sourced by first.sh and run.sh, which set `here` and `tree`: installs what was packed into ${site} and puts it before the rest.
set -euo pipefail
: "${here:?}" "${tree:?}"

python="${PYTHON:-python3}"
site="${SITE:-${TMPDIR:-/tmp}/acceptance_site}"
[[ -e "${site}/.installed" ]] || {
  rm -rf -- "${site}"
  "${python}" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "${site}" "${here}"/wheels/*.whl
  cp -r -- "${here}"/engine/*.dist-info "${site}"
  "${python}" - "${here}/engine" "${site}" <<'PY'
import lzma, pathlib, sys  # noqa: E401

packed, site = map(pathlib.Path, sys.argv[1:])
library = site / (packed / "where").read_text().strip()
library.parent.mkdir(parents=True, exist_ok=True)
library.write_bytes(lzma.decompress((packed / "libtransformer_engine.so.xz").read_bytes()))
PY
  touch "${site}/.installed"
}
export PYTHONPATH="${site}:${tree}${PYTHONPATH:+:${PYTHONPATH}}" PYTHONUNBUFFERED=1
