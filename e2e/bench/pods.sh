#!/bin/bash
# Pods of one cached image: create to Ready and delete to gone, one at a time and 50 at once, medians of RUNS runs (default 5); then memory, idle and
# with OBJECTS pod objects (default 10000) in the cluster, and idle CPU. With ORACLE the original's node is measured in the same run.
# usage: pods.sh MINIK8S LOAD [ORACLE]
set -euo pipefail
usage="usage: pods.sh MINIK8S LOAD [ORACLE]"
bin=$(readlink -f "${1:?$usage}"); load=$(readlink -f "${2:?$usage}"); oracle=${3:-}; runs=${RUNS:-5}; objects=${OBJECTS:-10000}
. "$(dirname "$0")/lib.sh"
[ -z "$oracle" ] || trap '"$oracle" down; tear_down' EXIT
ours() { in_ns "$load" -kubeconfig "$dir/data/kubeconfig.yaml" -pids "$server,$agent" "$@"; }
theirs() { "$oracle" in "$load" -pids "$(cat "${ORACLE:-/tmp/oracle}"/run/*.pid | paste -sd,)" "$@"; }
memory() {
  echo "resident, $1: server $(rss_mb $server) MB, agent $(rss_mb $agent) MB"
}
shim_memory() { for p in $(shims); do private_mb "$p"; echo; done | median | sed "s/^/shim, private memory, $1, median of 10 (MB): /"; }
measure() { # whose
  "$1" -n 1 -c 1 ready >/dev/null # pulls the image
  for ((i = 0; i < runs; i++)); do "$1" -n 20 -c 1 ready; "$1" -n 50 -c 50 ready; done | sed "s/^ */$1 /" | tee -a "$dir/results"
}

host_up; registry_up; cluster_up
ours -n 1 -c 1 ready >/dev/null
memory idle
a=$(cpu_ticks $server); b=$(cpu_ticks $agent); IDLE=${IDLE:-60}
read -r -t "$IDLE" <> <(:) || true
echo "idle CPU over $IDLE s: server $(awk -v n=$(($(cpu_ticks $server) - a)) -v s="$IDLE" 'BEGIN{printf "%.2f%%", n/s}'), agent $(awk -v n=$(($(cpu_ticks $agent) - b)) -v s="$IDLE" 'BEGIN{printf "%.2f%%", n/s}') of a core"
measure ours
memory "$((runs * 70)) pods later"
k create deployment idle --image=busybox:latest --replicas=10 -- sleep 1000000 >/dev/null
k wait --for=condition=Available deployment/idle --timeout=60s >/dev/null
memory "10 pods"; shim_memory "10 pods"
ours -n "$objects" create >/dev/null
memory "10 pods and $objects pod objects"; shim_memory "10 pods and $objects pod objects"
k delete deployment idle --wait >/dev/null
if [ -n "$oracle" ]; then
  "$oracle" up >/dev/null; registry_up nsenter --net=/var/run/netns/oracle; "$oracle" node
  measure theirs
  "$oracle" usage
fi
echo "medians of $runs runs:"; medians <"$dir/results"
