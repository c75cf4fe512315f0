#!/usr/bin/env bash
# One rank of a stage: runs the command, and leaves its exit code where the batch script looks for the first that failed.
#   rank.sh LOGS COMMAND...        writes LOGS/rank_<n>.log: what the command says
#                                  and LOGS/rank_<n>.exit: nanoseconds of the host's clock, code, rank, host
# What a rank says does not go through Slurm's own stream: that is cut with the step when another rank has failed, and a rank's
# last words with it.  srun's own code does not say it: with --kill-on-bad-exit it is that of a rank that was ended for another's failure.
set -uo pipefail
logs="$1"
shift
rank="${SLURM_PROCID:-0}"

# USR1 stays ignored until the program asks for it: before that (imports) it would end the program, and the batch script
# repeats it until it is heard.  TERM is passed on; this shell lives on to write the code.
trap '' USR1
trap '[[ -n "${child:-}" ]] && kill -TERM "${child}" 2>/dev/null' TERM
"$@" >>"${logs}/rank_${rank}.log" 2>&1 &
child=$!
wait "${child}"
code=$?
while kill -0 "${child}" 2>/dev/null; do # a trapped signal ends `wait`, not the child
  wait "${child}"
  code=$?
done
printf '%s %s %s %s\n' "$(date +%s%N)" "${code}" "${rank}" "${SLURMD_NODENAME:-$(hostname)}" >"${logs}/rank_${rank}.part"
mv -- "${logs}/rank_${rank}.part" "${logs}/rank_${rank}.exit"
exit "${code}"
