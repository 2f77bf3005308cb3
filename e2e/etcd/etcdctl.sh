#!/bin/sh
# What etcdctl says of two servers, which both begin empty: `etcdctl.sh <address> <address>`. The outputs are compared line
# by line, but for ids, sizes, terms and times. Say with ETCDCTL where etcdctl is, if it is not in the path.
#
# usage: etcdctl.sh 127.0.0.1:2379 127.0.0.1:12379
set -u
[ $# -eq 2 ] || { echo "usage: $0 <address of etcd> <address of the other>" >&2; exit 2; }
ETCDCTL=${ETCDCTL:-etcdctl}
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT

# Without what no two servers have in common.
mask() {
    sed -E \
        -e 's/"(cluster_id|member_id|raft_term|raftTerm|raftIndex|raftAppliedIndex|leader|dbSize|dbSizeInUse|dbSizeQuota|hash|ID|id)":[0-9]+/"\1":N/g' \
        -e 's/"(ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader|DBSize|DBSizeInUse|DBSizeQuota|Hash|CompactRevision|ID|DbSizeQuota|DbSize|DbSizeInUse)" ?: ?[0-9]+/"\1" : N/g' \
        -e 's/127\.0\.0\.1:[0-9]+/ADDRESS/g' \
        -e 's/took = [^ ]+/took = T/; s/"took":"[^"]*"/"took":T/; s/"Took" : "[^"]*"/"Took" : T/' \
        -e 's/took [0-9.]+[mµn]?s/took T/g' \
        -e 's/"ts":"[^"]*"/"ts":T/; s/"target":"[^"]*"/"target":T/; s/0xc[0-9a-f]+/PTR/g; s/"caller":"[^"]*"/"caller":C/' \
        -e 's/"id":-?[0-9]+/"id":N/g; s/^ADDRESS, [0-9]+, [0-9]+$/ADDRESS, HASH/; s/,"hash_revision":[0-9]+//' \
        -e 's/[0-9a-f]{16}/ID/g; s|^e/[0-9a-f]+|e/ID|; s/^(ID|1), started, default, .*/ID, started, default, URLS/' \
        -e 's/remaining\([0-9]+s\)/remaining(N)/; s/remaining-ttl":[0-9]+/remaining-ttl":N/'
}

ENDPOINT= LOG=
ctl() { timeout 10 "$ETCDCTL" --endpoints="$ENDPOINT" "$@"; }

# One command with its output.
t() {
    echo "\$ $*" | mask >>"$LOG"
    ctl "$@" </dev/null >"$OUT/one" 2>&1
    code=$?
    { cat "$OUT/one"; echo "= $code"; } | mask >>"$LOG"
}

# One with the lines that it reads.
i() {
    input=$1
    shift
    echo "\$ $* <<< $input" >>"$LOG"
    printf "$input" | ctl "$@" >"$OUT/one" 2>&1
    code=$?
    { cat "$OUT/one"; echo "= $code"; } | mask >>"$LOG"
}

# A watch over what the commands after -- do; it ends by itself after the seconds given first.
w() {
    seconds=$1
    shift
    echo "\$ $*" | mask >>"$LOG"
    timeout "$seconds" "$ETCDCTL" --endpoints="$ENDPOINT" "$@" >"$OUT/watch" 2>&1 &
    watch=$!
    sleep 0.5
    during
    wait $watch
    mask <"$OUT/watch" >>"$LOG"
}

commands() {
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
    t get a
    t get a -w json
    t get a -w fields
    t get a -w simple
    t get a --print-value-only
    t get none
    t get none -w json
    t get ''
    t get '' --prefix
    t get '' --from-key --keys-only
    t get b --from-key
    t get a c
    t get c a
    t get --prefix s
    t get a c --count-only -w fields
    t get a --prefix --count-only
    t get '' --prefix --count-only --write-out=fields
    t get '' --prefix --limit 2 -w json
    t get '' --prefix --limit 10 -w json
    for order in ASCEND DESCEND; do
        for target in KEY VERSION CREATE MODIFY VALUE; do
            t get '' --prefix --keys-only --order $order --sort-by $target --limit 3 -w json
        done
    done
    t get '' --prefix --sort-by MODIFY --keys-only
    t get '' --prefix --rev 4 -w json
    t get a --rev 2
    t get a --rev 3
    t get a --rev 1
    t get a --rev 1000
    t get a --consistency=s
    t get a --consistency=l
    t get '' --prefix --max-mod-rev 5 -w json
    t get '' --prefix --min-mod-rev 5 -w json
    t get '' --prefix --min-create-rev 4 --max-create-rev 5 -w json
    t del none
    t del a --prev-kv
    t del b -w json --prev-kv
    t del '' --prefix -w json
    t del x y
    t put d/1 1
    t put d/2 2
    t put d/3 3
    t del d/2 --from-key --prev-kv
    t del --range d/1 d/2
    t put t 1
    i 'value("t") = "1"\n\nput t 2\nget t\n\nput t 3\n\n' txn --interactive
    i 'value("t") = "1"\n\nput t 2\n\nput t 3\nget t\n\n' txn
    i 'mod("t") > "1"\n\nget t\n\n\n' txn -w json
    i 'create("t") < "2"\n\nget t\n\nget t --print-value-only\n\n' txn
    i 'ver("t") != "0"\nver("none") = "0"\n\ndel t\nput u 1\n\n\n' txn -w json
    i 'value("none") != "1"\n\n\nget u\n\n' txn -w fields
    i '\nput k 1\nput k 2\n\n\n' txn
    i '\nput k 1\ndel k\n\n\n' txn
    i '\nget a --rev 100000\n\n\n' txn
    i '\nput k 1 --lease=99\n\n\n' txn
    i "\n$(for n in $(seq 129); do echo "put k$n 1"; done)\n\n\n" txn
    i "\n$(for n in $(seq 128); do echo "put k$n 1"; done)\n\n\n" txn
    t get k --prefix --count-only -w fields
    head -c 1600000 /dev/zero | tr '\0' x >"$OUT/large"
    echo '$ put large' >>"$LOG"
    ctl put large <"$OUT/large" 2>&1 | mask >>"$LOG"
    head -c 1500000 /dev/zero | tr '\0' x >"$OUT/large"
    echo '$ put large, but not too large' >>"$LOG"
    ctl put large <"$OUT/large" 2>&1 | mask >>"$LOG"
    t get large --keys-only
    t del large

    t lease grant 100
    t lease grant 1
    t lease grant 0
    t lease grant 9000000001
    lease=$(ctl lease grant 300 | sed -E 's/lease ([0-9a-f]+) .*/\1/')
    t lease timetolive "$lease"
    t put leased 1 --lease="$lease"
    t put leased2 1 --lease="$lease"
    t get leased -w simple
    t put leased 2 --ignore-lease
    t put leased --lease="$lease" --ignore-value
    t put leased2 3
    t lease timetolive "$lease" --keys
    t lease timetolive "$lease" --keys -w json
    t lease keep-alive --once "$lease"
    t lease keep-alive --once 1234
    t lease list
    t lease timetolive 1234
    t lease revoke "$lease"
    t lease revoke "$lease"
    t get leased --prefix
    short=$(ctl lease grant 2 | sed -E 's/lease ([0-9a-f]+) .*/\1/')
    t put short 1 --lease="$short"
    sleep 4.5
    t get short
    t lease timetolive "$short"

    t put w/1 1
    t put w/1 2
    revision=$(ctl get w/1 -w json | sed -E 's/.*"mod_revision":([0-9]+).*/\1/')
    during() { ctl put w/2 1 >/dev/null; ctl put w/2 2 >/dev/null; ctl put x 1 >/dev/null; ctl del w/2 >/dev/null; }
    w 2 watch w/ --prefix
    w 2 watch w/ --prefix -w json
    w 2 watch w/2 --prev-kv
    w 2 watch w/2 --prev-kv -w json
    w 2 watch w/1 w/3 --rev "$revision"
    w 2 watch w/ --prefix --rev "$((revision - 1))" -w json
    w 2 watch w/2 --progress-notify
    w 2 watch w/3 w/1
    during() { printf '\nput w/3 1\nput w/4 1\ndel w/1\n\n\n' | ctl txn >/dev/null; }
    w 2 watch w/ --prefix -w json
    w 2 watch '' --prefix
    during() { ctl put wi/1 1 >/dev/null; sleep 0.3; }
    echo '$ watch -i' >>"$LOG"
    { echo 'watch wi/ --prefix'; echo 'watch wi/1'; sleep 0.5; during; echo progress; sleep 0.5; } |
        timeout 3 "$ETCDCTL" --endpoints="$ENDPOINT" watch -i 2>&1 | mask | sort >>"$LOG"

    revision=$(ctl get '' --prefix --limit 1 -w json | sed -E 's/.*"revision":([0-9]+).*/\1/')
    t compaction 100000
    t compaction "$revision"
    t compaction "$revision"
    t compaction "$((revision - 5))"
    t compaction 0
    t put after 1
    t compaction "$((revision + 1))" --physical
    t get w/ --prefix --rev "$((revision - 1))"
    t get after --rev "$((revision + 1))"
    during() { :; }
    w 1 watch w/ --prefix --rev "$((revision - 1))"
    w 1 watch after --rev "$((revision + 1))" -w json
    t put after 2
    w 1 watch after --rev "$((revision + 1))"

    t endpoint health
    t endpoint health -w json
    t endpoint status -w json
    t endpoint hashkv
    t endpoint hashkv -w json
    t endpoint hashkv --rev 1
    t endpoint hashkv --rev 1000000
    t member list
    t alarm list
    t alarm disarm
    t defrag
    t auth status
    t auth status -w json
    t auth disable
    t auth enable
    t user get root
    t user list
    t role get r
    echo '$ lock' >>"$LOG"
    ctl lock l echo held 2>&1 | mask >>"$LOG"
    t get l --prefix
    echo '$ elect' >>"$LOG"
    timeout 2 "$ETCDCTL" --endpoints="$ENDPOINT" elect e me 2>&1 | mask >>"$LOG"
    t elect -l none
    t role list
}

for number in 1 2; do
    ENDPOINT=$1 LOG=$OUT/$number
    shift
    : >"$LOG"
    commands
done
if [ -n "${KEEP:-}" ]; then cp "$OUT/1" "$OUT/2" "$KEEP"; fi
echo "$(grep -c '^\$' "$OUT/1") commands"
diff -U 3 "$OUT/1" "$OUT/2"
