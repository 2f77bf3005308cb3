# Shared by the benchmarks: a host of their own in a network namespace, a cluster on it, and its end.
# Needs root, kubectl, nft, perl, curl, docker-registry, skopeo, busybox and nginx; the original's node also Debian's containerd, runc
# and containernetworking-plugins. Everything goes when the script ends.

ns=m8s-bench; dir=$(mktemp -d /tmp/m8s-bench-XXXXXX); node=bench

enter="nsenter --net=/var/run/netns/$ns" # a plain prefix: behind a function, $! would be a shell of its own
in_ns() { $enter "$@"; }
registries=()
# Lines of the load generator with a word before each that says whose they are: for each test the medians of its figures over all runs.
medians() {
  awk '$3 ~ /^n=/ { key=$1 " " $2 " " $3 " " $4; if (!(key in seen)) { seen[key]=1; order[++keys]=key }
         runs[key]++
         for (i=5; i<=NF; i++) { if (split($i, part, "=") == 2) { name=part[1]; value=part[2] } else { name="rate"; value=$i; if (value !~ /\/s$/) continue }
           if (!((key, name) in have)) { have[key, name]=1; names[key]=names[key] " " name }
           unit=value; sub(/^[0-9.]+/, "", unit); units[name]=unit; value+=0; values[key, name, runs[key]]=value } }
       END { for (k=1; k<=keys; k++) { key=order[k]; line=key " runs=" runs[key]; n=split(names[key], all, " ")
           for (j=1; j<=n; j++) { name=all[j]; m=runs[key]; for (i=1; i<=m; i++) v[i]=values[key, name, i]
             for (a=2; a<=m; a++) { x=v[a]; for (b=a-1; b>0 && v[b]>x; b--) v[b+1]=v[b]; v[b+1]=x }
             line=line " " name "=" v[int((m+1)/2)] units[name] }
           print line } }'
}
median() { sort -n | awk '{v[NR]=$1} END{print v[int((NR+1)/2)]}'; }
since_ms() { echo $((($(date +%s%N) - $1) / 1000000)); }
k() { in_ns kubectl --kubeconfig "$dir/data/kubeconfig.yaml" "$@"; }

host_up() {
  ip netns add $ns; ip -n $ns link set lo up
  ip -n $ns link add uplink type bridge; ip -n $ns addr add 10.78.0.1/24 dev uplink
  ip -n $ns link set uplink up; ip -n $ns route add default via 10.78.0.254
}

# A registry at 127.0.0.1:5000 of the host (or of the one entered with the words given), with busybox:latest and pause:latest.
registry_up() {
  local enter=${*:-$enter} image
  [ -d "$dir/images" ] || "$(dirname "$0")/../images.sh" "$dir/images"
  printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:5000}\n' "$dir/registry" >"$dir/registry.yml"
  $enter docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 & registries+=($!)
  until $enter curl -sf http://127.0.0.1:5000/v2/ >/dev/null; do :; done
  for image in busybox:library/busybox pause:pause; do
    $enter skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$dir/images/oci:${image%:*}" "docker://127.0.0.1:5000/${image#*:}:latest"
  done
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
  [ ${#registries[@]} = 0 ] || { kill -KILL "${registries[@]}"; wait "${registries[@]}"; } 2>/dev/null
  for g in $(find /sys/fs/cgroup -depth -type d -path "*/minik8s/$node*" 2>/dev/null); do xargs -r kill -KILL <"$g/cgroup.procs" 2>/dev/null; done
  for p in $(ip netns pids $ns 2>/dev/null) $(shims); do kill -KILL "$p" 2>/dev/null; done
  awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l
  find /sys/fs/cgroup -depth -type d -path "*/minik8s/$node*" -exec rmdir {} ';' 2>/dev/null
  ip netns del $ns 2>/dev/null; rm -rf "$dir"
}
trap tear_down EXIT
