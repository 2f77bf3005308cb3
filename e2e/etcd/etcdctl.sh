#!/bin/bash
# What etcdctl says of etcd and of `minik8s server`, each on a host of its own and with TLS, line by line. Differences are printed, each
# with the command that it is of, and are the exit code. KEEP=DIRECTORY keeps both outputs and the logs, and a run that fails keeps them
# anyway. Both sides have the same address, https://127.0.0.1:2379, so that the outputs need not be rid of it.
#
# usage: etcdctl.sh [MINIK8S]     (or MINIK8S_BIN; ORACLE: see lib.sh)
#
# What etcd offers and minik8s does not, and what is not compared:
#   downgrade                               there is no older version to go back to
#   user add, role add                      certificates decide who may connect: there are no users and roles, and etcd's own words for
#                                           one that does not exist are compared
#   member add without --learner            a server is a learner first, always: etcd alone would wait for the second from then on
#   check perf, check datascale             they measure, for a minute, and read etcd's own metrics
#   completion, version                     of etcdctl alone
#   -w protobuf                             the same answers as -w json, with the ids in them
bin=${1:-${MINIK8S_BIN:-target/release/minik8s}}
. "$(dirname "$0")/lib.sh"
set +e +o pipefail # commands are meant to fail here

# Keys of the cluster's own begin with a slash, and are no part of what is compared: "the whole store" is from the key 0 on, which sorts
# behind them all. Their writes before the start are why revisions are relative: @5 in a command below is the fifth revision after an
# empty store's, and of every revision in an answer the same number is taken away. While nothing joins, the cluster writes nothing; that it
# has not done so is looked at in the end.
BASE=0
absolute() { perl -pe 's/\@(\d+)/$1 + '"$BASE"'/ge' <<<"$1"; }

# Without what no two servers have in common.
mask() {
  perl -pe '
    BEGIN { $base = '"$BASE"' }
    sub relative { $_[0] > $base ? $_[0] - $base : $_[0] }
    # Revisions, as above: in JSON, in the form of fields, and in sentences.
    s/("(?:\w+_)?revision": ?)(\d+)/$1 . relative($2)/ge; s/("CompactRevision":)(\d+)/$1 . relative($2)/ge;
    s/("\w*Revision" : )(\d+)/$1 . relative($2)/ge;
    s/((?:compacted revision|progress notify:|at revision|revision is) )(\d+)/$1 . relative($2)/ge;
    # Ids of clusters, members and leases; where raft is, which counts elections and ticks of its own as well as changes.
    s/"(cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|leader|ID|id)":-?\d+/"$1":N/g;
    s/"(ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader|ID)" : \d+/"$1" : N/g;
    s/\b[0-9a-f]{16}\b/ID/g; s|^e/[0-9a-f]+|e/ID|;
    # The size of the store, which etcd has as a file of pages with free ones in it and minik8s as a log.
    s/"(dbSize|dbSizeInUse)":\d+/"$1":N/g; s/"(DBSize|DBSizeInUse)" : \d+/"$1" : N/g;
    # What the hash is made of, which is each program'"'"'s own and over keys of the cluster too; it only has to be the same on all members.
    s/"hash":\d+/"hash":N/; s/"Hash" : \d+/"Hash" : N/; s/^(https:\S+), \d+(, \d+)?$/$1, HASH/;
    # How long something took, when, and addresses of objects in the memory of etcdctl.
    s/"took":"[^"]*"/"took":T/; s/"Took" : "[^"]*"/"Took" : T/; s/took = \S+/took = T/; s/took: \S+/took: T/; s/took [0-9.]+[mµn]?s/took T/g;
    s/"ts":"[^"]*"/"ts":T/; s/"caller":"[^"]*"/"caller":C/; s/etcd-endpoints:\/\/0x[0-9a-f]+/etcd-endpoints:\/\/PTR/g;
    # What is left of a lease, in seconds: one may have gone by.
    s/remaining\(\d+s\)/remaining(N)/; s/"(ttl|TTL)":29\d/"$1":N/;
    # A member'"'"'s name, and its address for other members, which with minik8s is that of its API; its id, short or long.
    s/^(ID|[0-9a-f]+), started, [^,]*, [^,]*, /ID, started, NAME, PEERS, /; s/\b(Member|cluster|remove|promote|update|move-leader) +[0-9a-f]+\b/$1 ID/g;
    s/^(ID|[0-9a-f]+), unstarted, /ID, unstarted, /;
    s/(INITIAL_CLUSTER=")([^"]*)/$1 . join ",", sort map { m{^another=} ? $_ : "NAME=PEERS" } split m{,}, $2/e;
  '
}

ctl() { timeout 10 $CTL "$@"; }

# One command with its output.
t() {
  local arg args=()
  for arg; do args+=("$(absolute "$arg")"); done
  echo "\$ $*" | mask
  ctl "${args[@]}" </dev/null >"$OUT/one" 2>&1
  echo "= $?" >>"$OUT/one"
  mask <"$OUT/one"
}

# One with the lines that it reads.
i() {
  local input=$1; shift
  echo "\$ $* <<< $input"
  absolute "$(printf '%b.' "$input")" | sed '$s/\.$//' | ctl "$@" >"$OUT/one" 2>&1
  echo "= $?" >>"$OUT/one"
  mask <"$OUT/one"
}

# Goes on once the command's output says so; where it never does, what comes next shows that.
until_says() { # what, command...
  local what=$1 end=$((SECONDS + 20)); shift
  until ctl "$@" 2>&1 | grep -q "$what"; do
    [ $SECONDS -lt $end ] || return
    sleep 0.05
  done
}

# A watch over what `during` does, which ends a second after that.
w() {
  local arg args=() end=$((SECONDS + 10))
  for arg; do args+=("$(absolute "$arg")"); done
  echo "\$ $*" | mask
  $CTL "${args[@]}" >"$OUT/watch" 2>&1 &
  local watch=$!
  # Nobody says when it is there: etcdctl, which a busy machine is slow to start, is heard of once it is connected.
  until [ -n "$($ON ss -Htn state established dport = :2379)" ] || [ $SECONDS -ge $end ]; do sleep 0.05; done
  sleep 0.5
  during
  sleep 1
  { kill $watch; wait $watch; } 2>/dev/null
  mask <"$OUT/watch"
}

revision() { ctl get 0 -w json | sed -E 's/.*"revision":([0-9]+).*/\1/'; }
now() { echo $(($(revision) - BASE)); }
lease() { ctl lease grant "$1" | sed -E 's/lease ([0-9a-f]+) .*/\1/'; }

puts_and_gets() {
  t put a 1
  t put a 2 --prev-kv
  t put b 1 --prev-kv
  t put c 1 -w json
  t put c 2 -w json --prev-kv
  t put c 3 -w fields --prev-kv
  t put '' 1
  t put a 3 --ignore-value
  t put a --ignore-value
  t put none --ignore-value
  t put none 1 --ignore-lease
  t put a 4 --ignore-lease
  t put a 4 --lease=123
  i 'from stdin' put stdin
  t put -- -a -b
  t del -- -a
  t get a
  t get a -w json
  t get a -w fields
  t get a -w simple
  t get a --hex
  t get a -w json --hex
  t get a --print-value-only
  t get a --print-value-only --keys-only
  t get none
  t get none -w json
  t get ''
  t get 0 --from-key
  t get 0 --from-key --keys-only
  echo "\$ get '' --prefix --keys-only" # the whole store, without the cluster's own keys
  ctl get '' --prefix --keys-only | sed '/^\//,+1d'
  t get b --from-key
  t get a c
  t get c a
  t get a a
  t get a --prefix --from-key
  t get --prefix s
  t get a c --count-only -w fields
  t get a --prefix --count-only
  t get 0 --from-key --count-only --write-out=fields
  t get 0 --from-key --limit 2 -w json
  t get 0 --from-key --limit 10 -w json
  for order in ASCEND DESCEND; do
    for target in KEY VERSION CREATE MODIFY VALUE; do
      t get 0 --from-key --keys-only --order $order --sort-by $target --limit 3 -w json
    done
  done
  t get 0 --from-key --sort-by MODIFY --keys-only
  t get a --order sideways
  t get a --sort-by colour
  t get 0 --from-key --rev @4 -w json
  t get a --rev @2
  t get a --rev @3
  t get a --rev @3 -w json
  t get a --rev 1
  t get a --rev @1000
  t get a --consistency=s
  t get a --consistency=l
  t get a --consistency=x
  t get 0 --from-key --max-mod-rev @5 -w json
  t get 0 --from-key --min-mod-rev @5 -w json
  t get 0 --from-key --min-create-rev @4 --max-create-rev @5 -w json
  t get 0 --from-key --max-create-rev @3 --limit 1 -w json
  t del none
  t del none -w json
  t del a --prev-kv
  t del b -w json --prev-kv
  t del b -w fields --prev-kv
  t del 0 --from-key -w json
  t del x y
  t del ''
  t put d/1 1
  t put d/2 2
  t put d/3 3
  t del d/2 --from-key --prev-kv
  t del --range d/1 d/2
  t put d/1 1
  t del d/ --prefix --prev-kv -w fields
}

transactions() {
  t put t 1
  i 'value("t") = "1"\n\nput t 2\nget t\n\nput t 3\n\n' txn --interactive
  i 'value("t") = "1"\n\nput t 2\n\nput t 3\nget t\n\n' txn
  i 'mod("t") > "@1"\n\nget t\n\n\n' txn -w json
  i 'mod("t") > "@1000"\n\nget t\n\n\n' txn -w json
  i 'create("t") < "@2"\n\nget t\n\nget t --print-value-only\n\n' txn
  i 'ver("t") != "0"\nver("none") = "0"\n\ndel t\nput u 1\n\n\n' txn -w json
  i 'val("u") < "2"\n\nget u\n\n\n' txn -w json
  i 'value("none") != "1"\n\n\nget u\n\n' txn -w fields
  i '\nget u --rev @3\n\n\n' txn -w json
  i '\nput u 2 --prev-kv\n\n\n' txn -w json
  i '\ndel u --prev-kv\nget u\n\n\n' txn -w json
  i '\nput k/1 1\nput k/2 2\nget k/ --prefix --order DESCEND --sort-by KEY\n\n\n' txn -w json
  i '\nput k 1\nput k 2\n\n\n' txn
  i '\nput k 1\ndel k\n\n\n' txn
  i '\nput k/1 1\ndel k --prefix\n\n\n' txn
  i '\nget a --rev 100000\n\n\n' txn
  i '\nput k 1 --lease=99\n\n\n' txn
  i '\nput k --ignore-value\nput none2 --ignore-value\n\n\n' txn
  i 'nonsense\n\n\n\n' txn
  i '\nput\n\n\n' txn
  i "\n$(for n in $(seq 129); do echo "put k$n 1"; done)\n\n\n" txn
  i "\n$(for n in $(seq 128); do echo "put k$n 1"; done)\n\n\n" txn
  t get k --prefix --count-only -w fields
  head -c 1600000 /dev/zero | tr '\0' x >"$OUT/large"
  echo '$ put large'
  ctl put large <"$OUT/large" 2>&1 | mask
  head -c 1500000 /dev/zero | tr '\0' x >"$OUT/large"
  echo '$ put large, but not too large'
  ctl put large <"$OUT/large" 2>&1 | mask
  t get large --keys-only
  t del large
}

leases() {
  local lease short revision
  t lease list
  t lease grant 100
  t lease grant 1
  t lease grant 0
  t lease grant 9000000001
  t lease grant 100 -w json
  lease=$(lease 300)
  t lease timetolive "$lease"
  t put leased 1 --lease="$lease"
  t put leased2 1 --lease="$lease"
  t get leased -w simple
  t get leased -w json | sed -E 's/"lease":[0-9]+/"lease":N/' # an id too
  t put leased 2 --ignore-lease
  t put leased --lease="$lease" --ignore-value
  t put leased2 3
  t lease timetolive "$lease" --keys
  t lease timetolive "$lease" --keys -w json
  t lease timetolive "$lease" --keys -w fields | sed -E 's/"TTL" : [0-9]+/"TTL" : N/' # as above
  t lease keep-alive --once "$lease"
  t lease keep-alive --once "$lease" -w json
  t lease keep-alive --once 1234
  until_says 'found 3 leases' lease list # the two shortest have ended; how fast the commands so far were decides whether they had
  t lease list
  t lease timetolive 1234
  t lease timetolive 1234 -w json
  t lease revoke "$lease"
  t lease revoke "$lease"
  t get leased --prefix
  short=$(lease 2)
  t put short 1 --lease="$short"
  echo '$ lease keep-alive' # three times the life of the lease; how often depends on the time
  timeout 6 $CTL lease keep-alive "$short" 2>&1 | mask | sort -u
  t get short
  revision=$(now)
  until_says 'already expired' lease timetolive "$short"
  t get short
  t lease timetolive "$short"
  during() { :; }
  w watch short --rev "@$((revision + 1))" -w json
}

watches() {
  local revision
  t put w/1 1
  t put w/1 2
  revision=$(now)
  during() { ctl put w/2 1; ctl put w/2 2; ctl put x 1; ctl del w/2; } >/dev/null
  w watch w/ --prefix
  w watch w/ --prefix -w json
  w watch w/ --prefix -w fields
  w watch w/2 --prev-kv
  w watch w/2 --prev-kv -w json
  w watch w/1 w/3 --rev "@$revision"
  w watch w/ --prefix --rev "@$((revision - 1))" -w json
  w watch w/ --prefix --rev "@$((revision + 1000))"
  w watch w/2 --progress-notify
  w watch w/3 w/1
  w watch w/2 --rev "@$((revision + 1))" -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE at revision $ETCD_WATCH_REVISION"'
  during() { printf '\nput w/3 1\nput w/4 1\ndel w/1\n\n\n' | ctl txn; } >/dev/null
  w watch w/ --prefix -w json
  w watch '' --prefix
  during() { ctl put wi/1 1; sleep 0.3; } >/dev/null
  echo '$ watch -i'
  { echo 'watch wi/ --prefix'; echo 'watch wi/1'; sleep 0.5; during; echo progress; sleep 0.5; } |
    timeout 3 $CTL watch -i 2>&1 | mask | sort # the order of two watches' events is nobody's promise
}

compaction() {
  local revision
  revision=$(now)
  t compaction @100000
  t compaction "@$revision"
  t compaction "@$revision"
  t compaction "@$((revision - 5))"
  t compaction 0
  t put after 1
  t compaction "@$((revision + 1))" --physical
  t get w/ --prefix --rev "@$((revision - 1))"
  t get after --rev "@$((revision + 1))"
  during() { :; }
  w watch w/ --prefix --rev "@$((revision - 1))"
  w watch w/ --prefix --rev "@$((revision - 1))" -w json
  w watch after --rev "@$((revision + 1))" -w json
  t put after 2
  w watch after --rev "@$((revision + 1))"
}

maintenance() {
  t endpoint health
  t endpoint health -w json
  t endpoint status -w json
  t endpoint status -w fields
  t endpoint hashkv
  t endpoint hashkv -w json
  t endpoint hashkv -w fields
  t endpoint hashkv --rev @1
  t endpoint hashkv --rev @1000000
  t member list
  t member list --consistency=s
  t alarm list
  t alarm disarm
  t defrag
  t auth status
  t auth status -w json
  t auth disable
  t auth enable
  t user get root
  t user list
  t user delete u
  i 'new' user passwd u --interactive=false
  t user grant-role u r
  t user revoke-role u r
  t role get r
  t role list
  t role delete r
  t role grant-permission r readwrite k
  t role revoke-permission r k
}

# They change keys of the cluster's own, so they come last and without revisions. Members come in the order of their ids, and etcd
# makes a new one's of the second in which it is added, so that it is now before and now behind the first: lists of two are sorted.
members() {
  local id
  t member remove 1234
  t member update 1234 --peer-urls=https://127.0.0.3:6443
  t member promote 1234
  t member promote none
  t member add another
  t move-leader 1234
  t move-leader none
  t member add another --learner --peer-urls=https://127.0.0.2:6443
  sleep 1.1 # etcd makes ids of addresses and the second, and within one complains of the id
  t member add another --learner --peer-urls=https://127.0.0.2:6443
  id=$(ctl member list | sed -n 's/, unstarted.*//p')
  t member list | sort
  t member promote "$id"
  t move-leader "$id"
  t member update "$id" --peer-urls=https://127.0.0.3:6443
  t member list | sed -E '/unstarted/s/, (true|false)$//' | sort # etcd forgets here that it is a learner
  t member remove "$id"
  t member list
  t put behind 1
  # What is in the file is each program's own; that it is there, whole, is etcdctl's doing.
  echo '$ snapshot save'
  ctl snapshot save "$OUT/snapshot" 2>&1 | mask | sed -E 's/"size":"[^"]*"/"size":S/; s/"path":"[^"]*"/"path":P/; s/\S*etc\S*snapshot\S*/FILE/'
  [ -s "$OUT/snapshot" ] && echo saved
}

recipes() {
  echo '$ lock'
  ctl lock lock/1 echo held 2>&1 | mask
  t get lock/ --prefix
  echo '$ lock, of two'
  ctl lock lock/2 -- sh -c 'echo first; sleep 1; echo first' >"$OUT/first" 2>&1 & local first=$!
  sleep 0.5
  { ctl lock lock/2 echo second; } >"$OUT/second" 2>&1
  wait $first
  cat "$OUT/first" "$OUT/second" | mask
  echo '$ elect'
  timeout 2 $CTL elect e me 2>&1 | mask
  timeout 2 $CTL elect e me >/dev/null 2>&1 & local leads=$!
  sleep 0.5
  timeout 1 $CTL elect -l e 2>&1 | mask
  wait $leads
  t elect -l none
  echo '$ make-mirror' # onto the same server; it prints how many keys it has copied every half a minute
  ctl put m/1 1 >/dev/null; ctl put m/2 2 >/dev/null
  timeout 3 $CTL make-mirror --prefix m/ --dest-prefix n/ $MIRROR https://127.0.0.1:2379 >"$OUT/mirror" 2>&1 & local mirror=$!
  sleep 1
  ctl put m/3 3 >/dev/null; ctl del m/1 >/dev/null
  wait $mirror
  mask <"$OUT/mirror"
  t get n/ --prefix
}

# All commands to one server, in a shell of its own: the two sides run at the same time.
side() { # name, directory with ca.crt, client.crt and client.key
  OUT=$dir/$1; mkdir "$OUT"
  ON=$(on "$1")
  CTL="$ON $tools/etcdctl --endpoints=https://127.0.0.1:2379 --cacert=$2/ca.crt --cert=$2/client.crt --key=$2/client.key"
  MIRROR="--dest-cacert=$2/ca.crt --dest-cert=$2/client.crt --dest-key=$2/client.key"
  local seen=none
  until [ "$(revision)" = "$seen" ]; do seen=$(revision); sleep 1; done # what the controllers write at their start
  BASE=$((seen - 1))
  puts_and_gets; transactions; leases; watches; compaction; maintenance; recipes
  ctl get / --prefix --keys-only --min-mod-rev $((BASE + 2)) | grep . >"$OUT/intruders"
  members
}

host_up etcd; host_up minik8s
cert server /CN=etcd IP:127.0.0.1; cert client /CN=client
start etcd $(on etcd) "$tools/etcd" --data-dir "$dir/etcd-data" --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 \
  --trusted-ca-file "$dir/pki/ca.crt" --cert-file "$dir/pki/server.crt" --key-file "$dir/pki/server.key" --client-cert-auth --log-level error \
  --quota-backend-bytes $((2 << 30)) # what minik8s has by itself; without it etcd does not say that it has one
start minik8s $(on minik8s) "$bin" server --data-dir "$dir/minik8s-data" --bind 127.0.0.1:6443 --advertise-address 127.0.0.1 --etcd-listen https://127.0.0.1:2379
mkdir "$dir/minik8s-client"
for f in ca.crt:ca.crt etcd-client.crt:client.crt etcd-client.key:client.key; do ln -s "$dir/minik8s-data/tls/${f%:*}" "$dir/minik8s-client/${f#*:}"; done
await minik8s $(on minik8s) sh -c '[ "$(curl -sk https://127.0.0.1:6443/readyz)" = ok ]'
await etcd $(on etcd) "$tools/etcdctl" --endpoints=https://127.0.0.1:2379 --cacert="$dir/pki/ca.crt" --cert="$dir/pki/client.crt" --key="$dir/pki/client.key" endpoint health

side etcd "$dir/pki" >"$dir/etcd.txt" & left=$!
side minik8s "$dir/minik8s-client" >"$dir/minik8s.txt"
wait $left
if [ -s "$dir/minik8s/intruders" ]; then echo "the cluster wrote keys of its own meanwhile, so revisions cannot be compared:"; cat "$dir/minik8s/intruders"; exit 1; fi
diff -U 3 -F '^\$' "$dir/etcd.txt" "$dir/minik8s.txt" || { echo "minik8s differs from etcd"; exit 1; }
echo "$(grep -c '^\$' "$dir/etcd.txt") commands, the same output"
