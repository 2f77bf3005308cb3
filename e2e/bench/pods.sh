#!/bin/bash
# Pods of one cached image: create to Ready and delete to gone, one at a time and 50 at once; then memory and idle CPU.
# usage: pods.sh MINIK8S LOAD      (LOAD: the load generator's binary)
set -euo pipefail
bin=$(readlink -f "${1:?usage: pods.sh MINIK8S LOAD}"); load=$(readlink -f "${2:?usage: pods.sh MINIK8S LOAD}"); runs=${RUNS:-5}
. "$(dirname "$0")/lib.sh"
host_up; registry_up; cluster_up
run_load() { in_ns "$load" -kubeconfig "$dir/data/kubeconfig.yaml" "$@"; }
memory() {
  echo "resident, $1: server $(rss_mb $server) MB, agent $(rss_mb $agent) MB"
}
run_load -n 1 -c 1 ready >/dev/null # pulls the image
memory idle
a=$(cpu_ticks $server); b=$(cpu_ticks $agent); IDLE=${IDLE:-60}
read -r -t "$IDLE" <> <(:) || true
echo "idle CPU over $IDLE s: server $(awk -v n=$(($(cpu_ticks $server) - a)) -v s="$IDLE" 'BEGIN{printf "%.2f%%", n/s}'), agent $(awk -v n=$(($(cpu_ticks $agent) - b)) -v s="$IDLE" 'BEGIN{printf "%.2f%%", n/s}') of a core"
echo "one at a time:"; run_load -n 20 -c 1 -pids "$server,$agent" ready
for ((i = 0; i < runs; i++)); do echo "50 at once, run $((i + 1)):"; run_load -n 50 -c 50 -pids "$server,$agent" ready; done
k create deployment idle --image=busybox:latest --replicas=10 -- sleep 1000000 >/dev/null
k wait --for=condition=Available deployment/idle --timeout=60s >/dev/null
for p in $(shims); do private_mb "$p"; echo; done | median | sed 's/^/shim, private memory, median of 10 (MB): /'
memory "10 pods"
