#!/bin/bash
# The original's kube-apiserver on the store of `minik8s server`, beside the cluster whose store that is: kubectl works through it, and a
# load generator drives it without a failure. What its log says that it does not say with etcd is printed in the end, and fails the test
# where it is about the store. KEEP=DIRECTORY keeps the logs.
#
# usage: control_plane.sh [MINIK8S] [LOAD]     (or MINIK8S_BIN and LOAD; without LOAD, a build of the load generator, that part is left
#                                              out; N=2000 operations; needs kubectl and curl; ORACLE: see lib.sh)
bin=${1:-${MINIK8S_BIN:-target/release/minik8s}}; load=${2:-${LOAD:-}}; n=${N:-2000}
. "$(dirname "$0")/lib.sh"
[ -x "$tools/kube-apiserver" ] || { echo "no kube-apiserver in $tools" >&2; exit 2; }

config() { # user: a kubeconfig of that certificate's
  cat >"$dir/$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:7443", certificate-authority: $dir/pki/ca.crt}}]
users: [{name: u, user: {client-certificate: $dir/pki/$1.crt, client-key: $dir/pki/$1.key}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
K
}
k() { timeout 60 $(on host) kubectl --kubeconfig "$dir/admin.kubeconfig" --cache-dir "$dir/cache" "$@"; }
ctl() { $(on host) "$tools/etcdctl" --endpoints=https://127.0.0.1:2379 --cacert="$dir/data/tls/ca.crt" --cert="$dir/data/tls/etcd-client.crt" --key="$dir/data/tls/etcd-client.key" "$@"; }
# Functions for the waits below.
watched() { k get --raw /metrics | grep -c '^apiserver_longrunning_requests.*resource="configmaps",scope="namespace".*verb="WATCH"'; }
seen() { grep '^c=' "$dir/watch.log" | paste -sd' '; }
boat() { printf 'apiVersion: example.com/v1\nkind: Boat\nmetadata: {name: dory, namespace: shop}\nspec: {oars: 2}\n' | k apply -o name -f -; }
keys() { ctl get "$1" --prefix --keys-only | grep -c . || true; }
compacted() { ctl get a --rev=5 2>&1 | grep -o 'has been compacted' | head -1; }
check() { # what it is about, what is expected, command...
  local what=$1 expected=$2 got; shift 2
  got=$("$@" 2>&1) || { echo "$what: '$*' failed: $got" >&2; exit 1; }
  [ "$got" = "$expected" ] || { echo "$what: '$*' said '$got' and not '$expected'" >&2; exit 1; }
}
until_is() { # expected, command...
  local expected=$1 end=$((SECONDS + 30)); shift
  until [ "$("$@" 2>/dev/null)" = "$expected" ]; do
    [ $SECONDS -lt $end ] || { echo "not within half a minute '$expected': $*; but '$("$@" 2>&1)'" >&2; exit 1; }
    sleep 0.1
  done
}

host_up host
cert apiserver /CN=kube-apiserver IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc; cert admin /O=system:masters/CN=admin; config admin
openssl genrsa -out "$dir/pki/sa.key" 2048 2>/dev/null
start minik8s $(on host) "$bin" server --data-dir "$dir/data" --bind 127.0.0.1:6443 --advertise-address 127.0.0.1 --etcd-listen https://127.0.0.1:2379
server=$started
await minik8s $(on host) sh -c '[ "$(curl -sk https://127.0.0.1:6443/readyz)" = ok ]'

# --advertise-address has to be no loopback address; nothing connects to it. etcd's compactor is made to run within the test.
began=$(date +%s%N)
start apiserver $(on host) "$tools/kube-apiserver" --etcd-servers https://127.0.0.1:2379 --etcd-cafile "$dir/data/tls/ca.crt" \
  --etcd-certfile "$dir/data/tls/etcd-client.crt" --etcd-keyfile "$dir/data/tls/etcd-client.key" --etcd-prefix /other --etcd-compaction-interval 10s \
  --secure-port 7443 --bind-address 127.0.0.1 --advertise-address 192.0.2.1 --allow-privileged --service-cluster-ip-range 10.97.0.0/16 \
  --authorization-mode Node,RBAC --client-ca-file "$dir/pki/ca.crt" --tls-cert-file "$dir/pki/apiserver.crt" --tls-private-key-file "$dir/pki/apiserver.key" \
  --service-account-key-file "$dir/pki/sa.key" --service-account-signing-key-file "$dir/pki/sa.key" --service-account-issuer https://kubernetes.default.svc \
  --endpoint-reconciler-type none --v=2
apiserver=$started
await apiserver k get --raw /readyz
echo "kube-apiserver on minik8s: /readyz ok after $((($(date +%s%N) - began) / 1000000)) ms"
check "health of the store" ok k get --raw /healthz/etcd

# kubectl: each kind of request. There are no controllers, so nothing follows of itself.
k create serviceaccount default >/dev/null 2>&1 || true
k create namespace shop >/dev/null; k -n shop create serviceaccount default >/dev/null
k -n shop get configmap -w -o 'jsonpath={.metadata.name}={.data.colour}{"\n"}' >"$dir/watch.log" 2>/dev/null & pids+=($!)
until_is 1 watched
k -n shop create configmap c --from-literal=colour=red >/dev/null
k -n shop create secret generic s --from-literal=password=p >/dev/null
k -n shop create deployment web --image=busybox --replicas=2 >/dev/null
k -n shop create service clusterip web --tcp=80:80 >/dev/null
k -n shop run pod --image=busybox >/dev/null
k create clusterrole reader --verb=get --resource=pods >/dev/null
check get red k -n shop get configmap c -o 'jsonpath={.data.colour}'
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied, namespace: shop}\ndata: {colour: green}\n' >"$dir/cm.yaml"
k apply -f "$dir/cm.yaml" >/dev/null; sed -i s/green/blue/ "$dir/cm.yaml"; k apply -f "$dir/cm.yaml" >/dev/null
k apply --server-side --force-conflicts -f "$dir/cm.yaml" >/dev/null
check apply blue k -n shop get configmap applied -o 'jsonpath={.data.colour}'
k -n shop patch configmap c --type=merge -p '{"data":{"colour":"yellow"}}' >/dev/null
k -n shop patch deployment web --type=json -p '[{"op":"replace","path":"/spec/paused","value":true}]' >/dev/null 2>&1 ||
  k -n shop patch deployment web --type=json -p '[{"op":"add","path":"/spec/paused","value":true}]' >/dev/null
check patch "yellow" k -n shop get configmap c -o 'jsonpath={.data.colour}'
k -n shop scale deployment web --replicas=5 >/dev/null
check scale 5 k -n shop get deployment web -o 'jsonpath={.spec.replicas}'
check "a list in pages" "$(k get namespaces -o name)" k get namespaces -o name --chunk-size=1
k apply -f - >/dev/null <<'K'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.oars, statusReplicasPath: .status.oars}}
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {oars: {type: integer}}}, status: {type: object, properties: {oars: {type: integer}}}}}}
K
k wait --for=condition=Established crd/boats.example.com --timeout=30s >/dev/null
until_is boat.example.com/dory boat
k -n shop scale boat dory --replicas=4 >/dev/null
check "a custom resource" 4 k -n shop get boat dory -o 'jsonpath={.spec.oars}'
k -n shop delete boat dory >/dev/null; k delete crd boats.example.com >/dev/null
k -n shop delete configmap c applied >/dev/null; k -n shop delete pod pod --grace-period=0 --force >/dev/null 2>&1
k -n shop delete deployment,service,secret --all >/dev/null
check delete "" k -n shop get configmap c --ignore-not-found -o name
until_is "c=red c=yellow c=yellow" seen
printf 'apiVersion: v1\nkind: Event\nmetadata: {name: e, namespace: shop}\ninvolvedObject: {kind: Pod, namespace: shop, name: pod}\nreason: Tried\n' | k create -f - >/dev/null
[ "$(ctl lease list | sed -n 's/found \([0-9]*\) leases/\1/p')" -gt 0 ] || { echo "no lease holds the event" >&2; exit 1; }
echo "kubectl: create, get, apply, server-side apply, patch, watch, scale, delete, a custom resource, an event with a lease: as they should be"

# The cluster whose store it is does not see any of it.
check "the cluster beside it" "" $(on host) kubectl --kubeconfig "$dir/data/kubeconfig.yaml" get namespace shop --ignore-not-found -o name
check "its keys" 0 keys /registry/namespaces/shop

if [ -n "$load" ]; then
  run() { $(on host) "$load" -kubeconfig "$dir/admin.kubeconfig" -pids "$server" "$@" | tee -a "$dir/load.log"; }
  echo "load, with the processor time of minik8s:"
  run -n $((n / 10)) -c 1 create; run -n $((n / 10)) -c 1 delete
  run -n "$n" create get list1 list patch delete
  run -watchers 300 fanout
  run -nodes 100 nodes
  run -n 200 -c 16 services flip
  ! grep -E 'first error|failed=[1-9]' "$dir/load.log" || { echo "the load had failures" >&2; exit 1; }
fi

# The compactor, which every API server of a store takes part in, has cut the history by now.
until_is "has been compacted" compacted
check "ready in the end" ok k get --raw /readyz
kill -0 "$apiserver" "$server"

# Lists are answered from the cache only where the store tells the progress of a watch; what went to the store all the same is a fallback.
k get --raw /metrics >"$dir/metrics"
grep -E '^apiserver_watch_cache_consistent_read_total' "$dir/metrics" | awk '/fallback="true"|success="false"/ {missed += $2; next} {from += $2}
  END {printf "consistent lists from the cache: %d, past it: %d\n", from, missed; exit from == 0 || missed > 0}' || { echo "lists went past the cache" >&2; exit 1; }
! grep -E '^etcd_request_errors_total' "$dir/metrics" || { echo "requests to the store failed, see above" >&2; exit 1; }

# What it says with etcd too: groups without kinds, connections that it gives up itself while it starts (one that the store had closed
# would read otherwise), controllers that begin before there are namespaces, and services that its repair sees before their addresses.
quiet='because it has no resources|createTransport failed.*(cancell?ed|use of closed network connection)"$'
quiet="$quiet|namespaces ..kube-system.. not found|Found stale data|repairip.go.*is not allocated; repairing"
grep -E '^[WEF]' "$dir/apiserver.log" | grep -vE "$quiet" | sed -E 's/^(.)[0-9]+ [0-9:.]+ +[0-9]+ /\1 /; s/BalancerAttributes: .*Err:/Err:/' |
  cut -c1-400 | sort | uniq -c >"$dir/complaints" || true
echo "kube-apiserver's warnings and errors, without those that it has with etcd too: $(wc -l <"$dir/complaints")"
cat "$dir/complaints"
! grep -iE 'etcd|grpc|rpc error|storage|compact|progress|unimplemented' "$dir/complaints" >/dev/null || { echo "it complains of the store" >&2; exit 1; }
