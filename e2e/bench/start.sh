#!/bin/bash
# Times from exec: the server to /readyz, empty and with OBJECTS config maps (default 10000), and `minik8s dev` to node Ready.
# Medians of RUNS runs (default 5).
# usage: start.sh MINIK8S
set -euo pipefail
bin=$(readlink -f "${1:?usage: start.sh MINIK8S}"); runs=${RUNS:-5}; objects=${OBJECTS:-10000}
. "$(dirname "$0")/lib.sh"
host_up

ready_ms() { # data directory
  local t; t=$(date +%s%N)
  $enter "$bin" server --data-dir "$1" --bind 127.0.0.1:6443 >"$dir/server.log" 2>&1 & server=$!
  until [ "$(in_ns curl -sk --max-time 1 https://127.0.0.1:6443/readyz 2>/dev/null)" = ok ]; do :; done
  took=$(since_ms "$t")
}
stop() { kill -TERM "$server"; wait "$server" || true; server=; }

for ((i = 0; i < runs; i++)); do ready_ms "$dir/empty$i"; stop; echo "$took"; done | median | sed 's/^/server, exec to \/readyz, new data directory (ms): /'
for ((i = 0; i < runs; i++)); do ready_ms "$dir/empty0"; stop; echo "$took"; done | median | sed 's/^/server, exec to \/readyz, second start (ms): /'
ready_ms "$dir/data"
for ((i = 0; i < objects; i++)); do printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"},"data":{"note":"some sixty characters of text, more or less, stand in here"}}\n' "$i"; done >"$dir/objects.json"
k create -f "$dir/objects.json" >/dev/null
stop
for ((i = 0; i < runs; i++)); do ready_ms "$dir/data"; stop; echo "$took"; done | median | sed "s/^/server, exec to \/readyz, $objects objects (ms): /"

for ((i = 0; i < runs; i++)); do
  t=$(date +%s%N)
  $enter "$bin" dev --data-dir "$dir/dev$i" --run-dir "$dir/run" --node-name $node >"$dir/dev.log" 2>&1 & server=$!
  until in_ns kubectl --kubeconfig "$dir/dev$i/kubeconfig.yaml" get nodes 2>/dev/null | grep -q ' Ready'; do :; done
  since_ms "$t"; stop
done | median | sed 's/^/dev, exec to node Ready as kubectl sees it (ms): /'
ls -l "$bin" | awk '{printf "binary: %.1f MB\n", $5/1048576}'
