#!/bin/bash
# The load generator against ours and, in the same run, against the original.
# usage: load.sh MINIK8S LOAD [ORACLE]     (ORACLE: the script that runs the original; it must have been built)
set -euo pipefail
bin=$(readlink -f "${1:?usage: load.sh MINIK8S LOAD [ORACLE]}"); load=$(readlink -f "${2:?usage: load.sh MINIK8S LOAD [ORACLE]}"); oracle=${3:-}
. "$(dirname "$0")/lib.sh"
n=${N:-10000}
tests() { # how to run it...
  "$@" -n 2000 -c 1 create; "$@" -n 2000 -c 1 delete
  "$@" -n "$n" create get list1 list patch
}
host_up
$enter "$bin" server --data-dir "$dir/data" --advertise-address 10.78.0.1 >"$dir/server.log" 2>&1 & server=$!
until [ "$(in_ns curl -sk --max-time 1 https://127.0.0.1:6443/readyz 2>/dev/null)" = ok ]; do :; done
ours() { in_ns "$load" -kubeconfig "$dir/data/kubeconfig.yaml" -pids "$server" "$@"; }
echo "ours: resident $(rss_mb $server) MB, empty"
tests ours
echo "ours: resident $(rss_mb $server) MB, $n pods"
ours -n "$n" delete; ours -n 2000 fanout; ours -nodes 1000 nodes; ours -n 5000 schedule
echo "ours: resident $(rss_mb $server) MB at the end"
kill -TERM $server; wait $server || true; server=
[ -n "$oracle" ] || exit 0
trap '"$oracle" down; tear_down' EXIT
"$oracle" up
pids=$(cat "${ORACLE:-/tmp/oracle}"/run/{etcd,apiserver,kcm,scheduler}.pid | paste -sd,)
theirs() { "$oracle" in "$load" -pids "$pids" "$@"; }
tests theirs
"$oracle" usage
theirs -n "$n" delete; theirs -n 2000 fanout; theirs -nodes 1000 nodes; theirs -n 5000 schedule
