#!/usr/bin/env bash
# The whole method in miniature on two CPU cores, verb by verb: `make demo`.
#
#   PARALLEL=tp2 | pp2 | dp2 ...   layout of stage 2 (conf/parallel/); stage 1 runs at tp2, under dp2 at dp2, too
#   PRECISION=fp32 | bf16          of student, teacher, rollouts and evaluation (docs/precision.md)
#   SMOKE=1                        every verb with a few steps: shows that the pipeline holds together, learns nothing
#   SIDE_BY_SIDE=1                 both arms of stage 2 at once (twice the memory; for machines with more than two cores)
#   OUTPUTS=folder                 where everything is written (default: outputs/ in the folder that this is started in)
#
# Started again, it reuses what is finished and goes on with the rest; remove OUTPUTS/<name> to train anew.
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

parallel="${PARALLEL:-tp2}"
precision="${PRECISION:-fp32}"
outputs="${OUTPUTS:-outputs}"
python="${PYTHON:-${root}/.venv/bin/python}"
[[ -x "${python}" ]] || python="$(command -v python3)"
experiment="miniature"
[[ "${SMOKE:-0}" == 1 ]] && experiment="miniature_smoke"
name="${experiment}_${parallel}"
[[ "${precision}" == fp32 ]] || name="${name}_${precision}"
common=("outputs=${outputs}" "name=${name}" "precision=${precision}")
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

case "${parallel}" in
  tp2pp2 | tp4) ranks=4 ;;
  single) ranks=1 ;;
  *) ranks=2 ;;
esac
case "${parallel}" in
  single | dp2) stage1="${parallel}" ;;
  *) stage1="tp2" ;;
esac
stage1_ranks=$((ranks < 2 ? 1 : 2))

phase() { # phase TITLE COMMAND...: run it, say how long it took
  local title="$1" started="${SECONDS}"
  shift
  printf '\n== %s\n' "${title}"
  "$@"
  printf -- '-- %s: %d s\n' "${title}" "$((SECONDS - started))"
}
verb() { # verb NAME OVERRIDES...: a recipe in one process
  local script="${root}/recipes/$1.py"
  shift
  "${python}" "${script}" "$@" "${common[@]}"
}
launched() { # launched RANKS NAME OVERRIDES...: a recipe that trains
  local count="$1" script="${root}/recipes/$2.py"
  shift 2
  "${python}" -m torch.distributed.run --standalone --nproc-per-node "${count}" "${script}" "$@" "${common[@]}"
}
arm() { # arm EXPERIMENT NAME: stage 2 and its export
  launched "${ranks}" vold "experiment=$1" "parallel=${parallel}"
  verb export_hf "experiment=$1" "export.run=${name}/$2"
}
trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT

phase "1 prepare the embedded world" verb prepare_miniature "experiment=${experiment}"
# torchrun turns every exit code into 1: what is wrong with the configuration is better said here, with 2.
verb plan "experiment=${experiment}" "parallel=${parallel}"
phase "2 the teacher writes traces" verb generate_traces "experiment=${experiment}"
phase "3 stage 1: SFT (${stage1})" launched "${stage1_ranks}" sft "experiment=${experiment}" "parallel=${stage1}"
phase "4 export" verb export_hf "experiment=${experiment}" "export.run=${name}/sft"
if [[ "${SIDE_BY_SIDE:-0}" == 1 ]]; then
  log="${outputs}/${name}/sft_grpo.log"
  arm "${experiment}_grpo" sft_grpo >"${log}" 2>&1 &
  grpo=$!
  phase "5 stage 2: VOLD (${parallel}), GRPO beside it in ${log}" arm "${experiment}" sft_vold
  wait "${grpo}" || { tail -n 40 "${log}" >&2; exit 1; }
else
  phase "5 stage 2: GRPO (${parallel})" arm "${experiment}_grpo" sft_grpo
  phase "5 stage 2: VOLD (${parallel})" arm "${experiment}" sft_vold
fi
phase "6 evaluate" verb evaluate "experiment=${experiment}"
phase "7 report" verb report "experiment=${experiment}"
printf '\n%d s in all\nresults: %s\nreport:  %s\n' \
  "${SECONDS}" "${outputs}/${name}/evaluation/results.json" "${outputs}/${name}/report.html"
