# Shared by the benchmarks: a host of their own in a network namespace, a cluster on it, and its end.
# Needs root, kubectl, nft, docker-registryskopeo and busybox. Everything goes when the script ends.

ns=m8s-bench; dir=$(mktemp -d /tmp/m8s-bench-XXXXXX); node=bench

enter="nsenter --net=/var/run/netns/$ns" # a plain prefix: behind a function, $! would be a shell of its own
in_ns() { $enter "$@"; }
median() { sort -n | awk '{v[NR]=$1} END{print v[int((NR+1)/2)]}'; }
since_ms() { echo $((($(date +%s%N) - $1) / 1000000)); }
k() { in_ns kubectl --kubeconfig "$dir/data/kubeconfig.yaml" "$@"; }

host_up() {
  ip netns add $ns; ip -n $ns link set lo up
  ip -n $ns link add uplink type bridge; ip -n $ns addr add 10.78.0.1/24 dev uplink
  ip -n $ns link set uplink up; ip -n $ns route add default via 10.78.0.254
}

# A registry at 127.0.0.1:5000 of the host, with busybox:latest.
registry_up() {
  "$(dirname "$0")/../images.sh" "$dir/images"
  printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:5000}\n' "$dir/registry" >"$dir/registry.yml"
  $enter docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
  until in_ns curl -sf http://127.0.0.1:5000/v2/ >/dev/null; do :; done
  in_ns skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$dir/images/oci:busybox" docker://127.0.0.1:5000/library/busybox:latest
  printf 'mirrors: {docker.io: {endpoint: ["http://127.0.0.1:5000"]}}\n' >"$dir/registries.yaml"
}

# Server and agent as two processes, so that each can be measured: sets server and agent to their pids.
cluster_up() {
  $enter "$bin" server --data-dir "$dir/data" --advertise-address 10.78.0.1 >"$dir/server.log" 2>&1 & server=$!
  until [ "$(in_ns curl -sk --max-time 1 https://127.0.0.1:6443/readyz 2>/dev/null)" = ok ]; do :; done
  $enter "$bin" agent --join https://127.0.0.1:6443 --token "$(cat "$dir/data/token")" --data-dir "$dir/node" --run-dir "$dir/run" \
    --node-name $node --node-ip 10.78.0.1 --registries "$dir/registries.yaml" >"$dir/agent.log" 2>&1 & agent=$!
  until k get nodes 2>/dev/null | grep -q ' Ready'; do :; done
}

rss_mb() { awk '/^VmRSS/{printf "%.1f", $2/1024}' "/proc/$1/status"; }
private_mb() { awk '/^Private_/{s+=$2} END{printf "%.2f", s/1024}' "/proc/$1/smaps_rollup"; }
cpu_ticks() { awk '{print $14+$15}' "/proc/$1/stat"; }
shims() { pgrep -f "shim.*$dir/run" || true; }

tear_down() {
  set +e
  [ -z "${agent:-}" ] || kill -KILL "$agent" 2>/dev/null
  [ -z "${server:-}" ] || kill -KILL "$server" 2>/dev/null
  for g in $(find /sys/fs/cgroup -depth -type d -path "*/minik8s/$node*" 2>/dev/null); do xargs -r kill -KILL <"$g/cgroup.procs" 2>/dev/null; done
  for p in $(ip netns pids $ns 2>/dev/null) $(shims); do kill -KILL "$p" 2>/dev/null; done
  awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l
  find /sys/fs/cgroup -depth -type d -path "*/minik8s/$node*" -exec rmdir {} ';' 2>/dev/null
  ip netns del $ns 2>/dev/null; rm -rf "$dir"
}
trap tear_down EXIT
