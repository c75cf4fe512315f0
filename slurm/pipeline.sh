#!/usr/bin/env bash
# An experiment as a chain of Slurm jobs, each after the success of the one before it:
#
#   bash slurm/pipeline.sh experiment=paper_3b cluster=my_site [key=value ...]
#   STAGES="sft export_sft" bash slurm/pipeline.sh ...        only these
#   VOLD_TEST_ONLY=1 bash slurm/pipeline.sh ...               let Slurm check each script, submit nothing
#
# check (here, now) -> traces (array) -> sft -> export -> vold -> export -> evaluate -> report.
# Called again it goes on from where the chain stands: a stage that succeeded with the very same script is left out, one that
# is still queued or running is left alone, and the rest is submitted.  If a stage fails, those after it are cancelled.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="${VOLD_PYTHON:-${root}/.venv/bin/python}"
[[ -x "${python}" ]] || python="$(command -v python3)"
command -v sbatch >/dev/null || { echo "error: no sbatch here: run this on a login node" >&2; exit 2; }

table="$("${python}" "${root}/recipes/chain.py" "$@")" # what is wrong is said here, with 2, and not by a job tomorrow
first="$(head -n 1 <<<"${table}")"
folder="$(dirname -- "${first##*$'\t'}")"

finished() { # finished SCRIPT NAME ARRAY: every job of the stage has succeeded with this script
  local index marks=("$2")
  if [[ "$3" -gt 0 ]]; then
    marks=()
    for ((index = 0; index < $3; index++)); do marks+=("$2.${index}"); done
  fi
  for index in "${marks[@]}"; do
    [[ -f "${folder}/${index}.done" && "$(<"${folder}/${index}.done")" == "$(cksum <"$1")" ]] || return 1
  done
}
in_queue() { # in_queue ID: Slurm still means to run it
  [[ -n "$(squeue --noheader --jobs="$1" --states=PENDING,RUNNING,CONFIGURING,COMPLETING,REQUEUED,SUSPENDED,STOPPED 2>/dev/null)" ]]
}

before="" anew=""
while IFS=$'\t' read -r name script array; do
  [[ -z "${STAGES:-}" || " ${STAGES} " == *" ${name} "* ]] || continue
  record="${folder}/${name}.job"
  id="" submitted=""
  [[ ! -f "${record}" ]] || read -r id submitted <"${record}" || true
  checksum="$(cksum <"${script}" | tr ' ' -)"
  if [[ "${VOLD_TEST_ONLY:-0}" == 1 ]]; then
    sbatch --test-only "${script}"
    continue
  fi
  if [[ -z "${anew}" ]] && finished "${script}" "${name}" "${array}"; then
    printf '%-12s done\n' "${name}"
    continue
  fi
  if [[ -n "${id}" ]] && in_queue "${id}"; then
    if [[ -z "${anew}" && "${submitted}" == "${checksum}" ]]; then
      printf '%-12s %s (submitted before)\n' "${name}" "${id}"
      before="${id}"
      continue
    fi
    scancel "${id}" # its settings have changed, or what it waited for is done anew
  fi
  rm -f -- "${folder}/${name}".done "${folder}/${name}".[0-9]*.done
  id="$(sbatch --parsable --kill-on-invalid-dep=yes ${before:+--dependency="afterok:${before}"} "${script}")"
  id="${id%%;*}"
  printf '%s %s\n' "${id}" "${checksum}" >"${record}"
  printf '%-12s %s%s\n' "${name}" "${id}" "${before:+ after ${before}}"
  before="${id}" anew=1
done <"${folder}/chain.tsv"
printf 'logs: %s\n' "$(dirname -- "${folder}")/logs"
