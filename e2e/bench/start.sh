#!/bin/bash
# Times from exec: the server to /readyz, `minik8s dev` to node Ready. Medians of RUNS runs (default 5).
# usage: start.sh MINIK8S
set -euo pipefail
bin=$(readlink -f "${1:?usage: start.sh MINIK8S}"); runs=${RUNS:-5}
ns=m8s-bench-start; dir=$(mktemp -d /tmp/m8s-bench-XXXXXX)
cleanup() { ip netns pids $ns 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true; ip netns del $ns 2>/dev/null || true; rm -rf "$dir"; }
trap cleanup EXIT
ip netns add $ns; ip -n $ns link set lo up
ip -n $ns link add uplink type bridge; ip -n $ns addr add 10.78.0.1/24 dev uplink; ip -n $ns link set uplink up; ip -n $ns route add default via 10.78.0.254
in_ns() { nsenter --net=/var/run/netns/$ns "$@"; }
median() { sort -n | awk '{v[NR]=$1} END{print v[int((NR+1)/2)]}'; }
ms() { echo $((($(date +%s%N) - $1) / 1000000)); }

for ((i = 0; i < runs; i++)); do
  t=$(date +%s%N); in_ns "$bin" server --data-dir "$dir/s$i" --bind 127.0.0.1:6443 >"$dir/log" 2>&1 & pid=$!
  until [ "$(in_ns curl -sk --max-time 1 https://127.0.0.1:6443/readyz 2>/dev/null)" = ok ]; do :; done
  ms "$t"; kill -TERM $pid; wait $pid || true
done | median | sed 's/^/server, exec to \/readyz (ms): /'

for ((i = 0; i < runs; i++)); do
  t=$(date +%s%N); in_ns "$bin" dev --data-dir "$dir/d$i" --run-dir "$dir/r$i" --node-name "bench" >"$dir/log" 2>&1 & pid=$!
  until in_ns kubectl --kubeconfig "$dir/d$i/kubeconfig.yaml" get nodes 2>/dev/null | grep -q ' Ready'; do :; done
  ms "$t"; kill -TERM $pid; wait $pid || true
done | median | sed 's/^/dev, exec to node Ready, seen by kubectl (ms): /'
