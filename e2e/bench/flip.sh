#!/bin/bash
# One endpoint changes among N services of two endpoints each (default 10000): how long until the kernel has it, and what it costs.
# A change's time runs from the moment its request has left to the moment the kernel tells of new rules (`nft monitor`); both sides are
# stamped the same way.
# usage: flip.sh MINIK8S LOAD [ORACLE]
set -euo pipefail
usage="usage: flip.sh MINIK8S LOAD [ORACLE]"
bin=$(readlink -f "${1:?$usage}"); load=$(readlink -f "${2:?$usage}"); oracle=${3:-}; n=${N:-10000}; changes=${CHANGES:-100}
. "$(dirname "$0")/lib.sh"
[ -z "$oracle" ] || trap '"$oracle" down; tear_down' EXIT
stamp='$|=1; printf "%.6f %s", time, $_'
ours() { in_ns "$load" -kubeconfig "$dir/data/kubeconfig.yaml" -pids "$server,$agent" "$@"; }
theirs() { "$oracle" in "$load" -pids "$(cat "${ORACLE:-/tmp/oracle}"/run/*.pid | paste -sd,)" "$@"; }
ticks() { local sum=0 p; for p in "$@"; do sum=$((sum + $(cpu_ticks "$p"))); done; echo $sum; }

# flips ENTER RATE PIDS...: one connection, with the certificate in admin.pem, changes the first endpoint of svc-00000, RATE times an hour.
flips() {
  local enter=$1 rate=$2 before i monitor; shift 2
  for ((i = 1; i <= changes; i++)); do
    [ "$i" = 1 ] || echo next
    printf 'url = https://127.0.0.1:6443/apis/discovery.k8s.io/v1/namespaces/load/endpointslices/svc-00000\nrequest = PATCH\nverbose\ninsecure\nsilent\ncert = %s\nheader = "content-type: application/json-patch+json"\noutput = /dev/null\n' "$dir/admin.pem"
    printf 'data = "[{\\"op\\":\\"replace\\",\\"path\\":\\"/endpoints/0/addresses/0\\",\\"value\\":\\"10.244.%d.%d\\"}]"\n' $((210 + i % 20)) $((2 + i))
  done >"$dir/flips"
  $enter nft monitor 2>/dev/null > >(perl -MTime::HiRes=time -ne "$stamp" >"$dir/kernel") & monitor=$!
  read -r -t 5 <> <(:) || true # nft reads the whole ruleset before it listens
  before=$(ticks "$@")
  $enter curl --rate "$rate/h" --config "$dir/flips" 2>&1 | perl -MTime::HiRes=time -ne "$stamp" | grep -E ' (> PATCH|< HTTP)' >"$dir/sent"
  read -r -t "${SETTLE:-1}" <> <(:) || true # the last change's rules
  awk -v t=$(($(ticks "$@") - before)) -v n="$changes" 'BEGIN{printf "CPU of all processes: %.2f ms a change\n", t*10/n}'
  kill $monitor; wait $monitor 2>/dev/null || true
  grep -c 'HTTP/[0-9.]* 200' "$dir/sent" | sed 's/$/ changes accepted/'
  awk 'FNR==NR {k[++m]=$1; next} />/ {while (j<m && k[j+1]<$1) j++; if (j<m) printf "%.2f\n", (k[j+1]-$1)*1000}' "$dir/kernel" "$dir/sent" | sort -n |
    awk '{v[NR]=$1} END{if (NR) printf "change to kernel, %d changes: p50=%.2fms p99=%.2fms max=%.2fms\n", NR, v[int((NR+1)/2)], v[int(NR*.99+.5)], v[NR]; else print "no change reached the kernel"}'
}

host_up; registry_up; cluster_up
echo "ours:"
ours -n "$n" services; ours flip
for part in certificate key; do k config view --raw -o "jsonpath={.users[0].user.client-$part-data}" | base64 -d; done >"$dir/admin.pem"
flips "$enter" 36000 "$server" "$agent"
kill -TERM "$agent" "$server"; wait "$agent" "$server" || true; agent=; server=
[ -n "$oracle" ] || exit 0
echo "theirs:"
"$oracle" up >/dev/null; "$oracle" proxy
theirs -n "$n" services; theirs flip
read -r -t "${FIRST_SYNC:-60}" <> <(:) || true # the first sync of all services
cat "${ORACLE:-/tmp/oracle}"/run/pki/admin.{crt,key} >"$dir/admin.pem"
SETTLE=15 changes=10 flips "nsenter --net=/var/run/netns/oracle" 240 $(cat "${ORACLE:-/tmp/oracle}"/run/*.pid)
