#!/bin/bash
# The load generator's tests of the control plane, against ours and, in the same run, against the original; medians of RUNS runs (default 5).
# usage: load.sh MINIK8S LOAD [ORACLE]     (ORACLE: the script that runs the original; it must have been built)
set -euo pipefail
usage="usage: load.sh MINIK8S LOAD [ORACLE]"
bin=$(readlink -f "${1:?$usage}"); load=$(readlink -f "${2:?$usage}"); oracle=${3:-}; runs=${RUNS:-5}; n=${N:-10000}
. "$(dirname "$0")/lib.sh"
[ -z "$oracle" ] || trap '"$oracle" down; tear_down' EXIT

tests() { # whose, then how to run it...
  local who=$1; shift
  { "$@" -n 2000 -c 1 create; "$@" -n 2000 -c 1 delete
    "$@" -n "$n" create get list1 list patch
    memory "$who"
    "$@" -n "$n" delete; "$@" -n 2000 fanout; "$@" -nodes 1000 nodes; "$@" -n 5000 schedule; } | sed "s/^ */$who /" | tee -a "$dir/results"
}
memory() {
  if [ "$1" = ours ]; then echo "resident with $n pods, created and patched: $(rss_mb $server) MB"; else "$oracle" usage; fi
}
ours() { in_ns "$load" -kubeconfig "$dir/data/kubeconfig.yaml" -pids "$server" "$@"; }
theirs() { "$oracle" in "$load" -pids "$(cat "${ORACLE:-/tmp/oracle}"/run/{etcd,apiserver,kcm,scheduler}.pid | paste -sd,)" "$@"; }

host_up
for ((run = 1; run <= runs; run++)); do
  $enter "$bin" server --data-dir "$dir/data" --advertise-address 10.78.0.1 >"$dir/server.log" 2>&1 & server=$!
  until [ "$(in_ns curl -sk --max-time 1 https://127.0.0.1:6443/readyz 2>/dev/null)" = ok ]; do :; done
  tests ours ours
  kill -TERM $server; wait $server || true; server=; rm -rf "$dir/data"
  [ -n "$oracle" ] || continue
  "$oracle" up >/dev/null; tests theirs theirs; "$oracle" down
done
echo "medians of $runs runs:"; medians <"$dir/results"
