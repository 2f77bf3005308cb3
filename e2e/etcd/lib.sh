# Shared by what holds the etcd API beside etcd itself: hosts, which are network namespaces, the servers on them, and the end of it all.
# Needs root, openssl, perl, and in $ORACLE/bin (default /tmp/oracle) etcd 3.6 with its etcdctl and etcd-benchmark: `oracle build` makes
# them. A script that sources this sets bin, the minik8s to try, first. Everything goes when the script ends, but for the logs and what was
# compared: KEEP=DIRECTORY keeps those, and a run that fails keeps them under /tmp, as what came of chance does not come again when asked.
set -euo pipefail
tools=${ORACLE:-/tmp/oracle}/bin; dir=$(mktemp -d /tmp/m8s-etcd-XXXXXX); hosts=() pids=() started=
[ -x "$tools/etcd" ] || { echo "no etcd in $tools: say with ORACLE where 'oracle build' has put it" >&2; exit 2; }
[ -x "$bin" ] || { echo "no minik8s at $bin: give its path, or set MINIK8S_BIN" >&2; exit 2; }

# What enters a host: a plain prefix, as behind a function $! would be a shell of its own.
on() { echo "nsenter --net=/var/run/netns/m8s-etcd-$$-$1"; }

host_up() { # name, [address on the wire between the hosts]
  local ns=m8s-etcd-$$-$1 switch=m8s-etcd-$$-switch
  ip netns add "$ns"; hosts+=("$ns"); ip -n "$ns" link set lo up
  [ $# = 2 ] || return 0
  if [ ! -e "/var/run/netns/$switch" ]; then
    ip netns add "$switch"; hosts+=("$switch"); ip -n "$switch" link add br0 type bridge; ip -n "$switch" link set br0 up
  fi
  ip -n "$switch" link add "$1" type veth peer name eth0 netns "$ns"; ip -n "$switch" link set "$1" master br0 up
  ip -n "$ns" addr add "$2/24" dev eth0; ip -n "$ns" link set eth0 up
}

# Starts a process that ends with the script; its pid is then in started. Its output goes to a file of that name.
start() { # name, command...
  local name=$1; shift
  "$@" >"$dir/$name.log" 2>&1 & started=$!; pids+=($started)
}
stop() { # pid
  kill -TERM "$1" 2>/dev/null || return 0
  wait "$1" 2>/dev/null || true
}

# Waits until the command succeeds; else says what the log of that name has.
await() { # name, command...
  local name=$1 end=$((SECONDS + 60)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "not within a minute: $*" >&2; tail -n 20 "$dir/$name.log" >&2; exit 1; }
    sleep 0.05
  done
}

# A certificate for a server or a client of an authority of the script's own, in $dir/pki.
cert() { # name, subject, [alternative names]
  local p=$dir/pki
  if [ ! -d "$p" ]; then
    mkdir "$p"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$p/ca.key" -out "$p/ca.crt" -days 3650 -subj /CN=ca 2>/dev/null
  fi
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$p/$1.key" -out "$p/$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "$p/$1.csr" -CA "$p/ca.crt" -CAkey "$p/ca.key" -CAcreateserial -out "$p/$1.crt" -days 3650 \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth' "${3:-DNS:localhost}") 2>/dev/null
}

tear_down() {
  local status=$? p ns
  set +e
  { [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}"; wait; } 2>/dev/null
  for ns in "${hosts[@]}"; do
    for p in $(ip netns pids "$ns"); do kill -KILL "$p" 2>/dev/null; done
    ip netns del "$ns"
  done
  [ $status = 0 ] || [ $status = 130 ] || { KEEP=${KEEP:-$(mktemp -d /tmp/m8s-etcd-failed-XXXXXX)}; echo "logs and outputs are in $KEEP" >&2; }
  if [ -n "${KEEP:-}" ]; then mkdir -p "$KEEP"; cp "$dir"/*.log "$dir"/*.txt "$KEEP" 2>/dev/null; fi
  rm -rf "$dir"
}
trap tear_down EXIT
trap 'exit 130' INT TERM
