#!/usr/bin/env bash
# An experiment as a chain of Slurm jobs, each after the success of the one before it:
#
#   bash slurm/pipeline.sh experiment=paper_3b cluster=my_site [key=value ...]
#   bash slurm/pipeline.sh --diff ...                         say what would run, what be cancelled, and why; touch nothing
#   STAGES="sft export_sft" bash slurm/pipeline.sh ...        only these
#   VOLD_TEST_ONLY=1 bash slurm/pipeline.sh ...               let Slurm check each script, submit nothing
#
# check (here, now) -> traces (array) -> sft -> export_sft -> vold -> export_vold -> evaluate -> report.
# Called again it goes on from where the chain stands: a stage that succeeded is done again only if a key that it reads has
# changed (or a stage before it is done again), one that is queued or runs with these keys is left alone, and the rest is
# submitted.  A job takes the place of another only when that has ended.  If a stage fails, those after it are cancelled.
# What is wrong is said before anything is cancelled or submitted, with 2 (recipes/chain.py decides all of this).
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="${VOLD_PYTHON:-${root}/.venv/bin/python}"
[[ -x "${python}" ]] || python="$(command -v python3)"

action="submit"
[[ "${VOLD_TEST_ONLY:-0}" != 1 ]] || action="test"
arguments=()
for word in "$@"; do
  case "${word}" in
    --diff) action="diff" ;;
    --help | -h)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      printf 'keys: %s %s --help\n' "${python}" "${root}/recipes/chain.py"
      exit 0
      ;;
    --*=* | --config-dir) arguments+=("${word}") ;;
    -*) printf 'error: %s\n  allowed: --diff, --help, --config-dir FOLDER, and key=value\n' "${word}" >&2; exit 2 ;;
    *) arguments+=("${word}") ;;
  esac
done
command -v sbatch >/dev/null || { echo "error: no sbatch here: run this on a login node" >&2; exit 2; }

if [[ -n "${STAGES:-}" ]]; then
  read -r -a names <<<"${STAGES//,/ }"
  [[ "${#names[@]}" -eq 0 ]] || arguments+=("chain.stages=[$(IFS=,; printf '%s' "${names[*]}")]")
fi
exec "${python}" "${root}/recipes/chain.py" "${arguments[@]}" "chain.action=${action}"
