#!/usr/bin/env bash
# A private Slurm on one host, without systemd: its own munged, slurmctld and slurmd, all state in one folder.  As root.
#   cluster.sh start FOLDER [NODES=2] [CPUS=4] [GPUS=2]      then: export SLURM_CONF=FOLDER/slurm.conf
#   cluster.sh kill FOLDER NODE | revive FOLDER NODE | stop FOLDER
# Ends only processes it started (their ids are kept in FOLDER).
set -euo pipefail
verb="$1"
mkdir -p -- "$2"
folder="$(cd -- "$2" && pwd)"

free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*[each.getsockname()[1] for each in sockets])
PY
}

# A node has its own mount namespace, so that its name has an address without a change to /etc/hosts, and its own process
# namespace: killing the node kills its ranks, as a crash does, and nothing of it outlives the cluster.
# shellcheck disable=SC2016 # the inner shell expands them
start_node() {
  setsid unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private \
    sh -c 'mount --bind "$1/hosts" /etc/hosts; slurmd -f "$1/slurm.conf" -N "$2" -D & wait' node "${folder}" "$1" \
    >>"${folder}/slurmd.$1.out" 2>&1 </dev/null &
  echo $! >"${folder}/slurmd.$1.id"
}

configuration() { # configuration NODES CPUS GPUS PORTS...
  local count="$1" cpus="$2" gpus="$3" host index
  host="$(hostname -s)"
  shift 3
  cat <<CONF
ClusterName=private
SlurmctldHost=${host}(127.0.0.1)
SlurmctldPort=$1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=${folder}/munge/sock,cred_expire=5
StateSaveLocation=${folder}/state
SlurmdSpoolDir=${folder}/spool/%n
SlurmctldPidFile=${folder}/slurmctld.pid
SlurmdPidFile=${folder}/slurmd.%n.pid
SlurmctldLogFile=${folder}/log/slurmctld.log
SlurmdLogFile=${folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=3600
JobRequeue=1
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
PropagateResourceLimits=NONE
GresTypes=gpu
CONF
  for ((index = 1; index <= count; index++)); do
    shift
    echo "NodeName=n${index} NodeHostname=${host} NodeAddr=127.0.0.1 Port=$1 CPUs=${cpus} RealMemory=4000 State=UNKNOWN Gres=gpu:${gpus}"
  done
  echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
}

start() {
  local nodes="${1:-2}" cpus="${2:-4}" gpus="${3:-2}" index gpu ports
  mkdir -p -- "${folder}"/{state,spool,log,munge,dev}
  chmod 700 "${folder}/munge"
  read -r -a ports <<<"$(free_ports $((nodes + 1)))"
  dd if=/dev/urandom of="${folder}/munge/key" bs=128 count=1 status=none
  chmod 400 "${folder}/munge/key"
  munged --force --key-file="${folder}/munge/key" --socket="${folder}/munge/sock" --pid-file="${folder}/munge/pid" \
    --log-file="${folder}/munge/log" --seed-file="${folder}/munge/seed" --num-threads=2
  cp /etc/hosts "${folder}/hosts"
  : >"${folder}/gres.conf"
  for ((index = 1; index <= nodes; index++)); do
    echo "127.0.0.1 n${index}" >>"${folder}/hosts"
    for ((gpu = 0; gpu < gpus; gpu++)); do # a GPU is a device file; /dev/null under another name will do
      [[ -c "${folder}/dev/gpu${gpu}" ]] || mknod "${folder}/dev/gpu${gpu}" c 1 3
      echo "NodeName=n${index} Name=gpu File=${folder}/dev/gpu${gpu}" >>"${folder}/gres.conf"
    done
  done
  configuration "${nodes}" "${cpus}" "${gpus}" "${ports[@]}" >"${folder}/slurm.conf"
  setsid slurmctld -f "${folder}/slurm.conf" -D >"${folder}/slurmctld.out" 2>&1 </dev/null &
  echo $! >"${folder}/slurmctld.id"
  for ((index = 1; index <= nodes; index++)); do start_node "n${index}"; done
  export SLURM_CONF="${folder}/slurm.conf"
  for ((index = 0; index < 300; index++)); do
    [[ "$(sinfo -h -N -o '%T' 2>/dev/null | grep -c '^idle$')" -lt "${nodes}" ]] || return 0
    sleep 0.2
  done
  echo "the cluster did not come up" >&2
  tail -n 5 "${folder}"/log/*.log "${folder}"/*.out >&2
  return 1
}

mine() { # mine FILE: the process named there is still one of this cluster's (a process id may have been given away again)
  [[ -f "$1" ]] && tr '\0' ' ' <"/proc/$(<"$1")/cmdline" 2>/dev/null | grep -qF -- "${folder}"
}

case "${verb}" in
  start) start "${@:3}" ;;
  kill) kill -9 "$(<"${folder}/slurmd.$3.id")" ;;
  revive) start_node "$3" ;;
  stop)
    for file in "${folder}"/slurmd.*.id; do ! mine "${file}" || kill -9 "$(<"${file}")"; done
    for file in "${folder}/slurmctld.id" "${folder}/munge/pid"; do ! mine "${file}" || kill "$(<"${file}")"; done
    for ((i = 0; i < 100; i++)); do mine "${folder}/slurmctld.id" || break; sleep 0.1; done
    ;;
  *) echo "cluster.sh start | kill | revive | stop FOLDER" >&2; exit 2 ;;
esac
