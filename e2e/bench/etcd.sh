#!/bin/bash
# etcd's own benchmark against etcd and against `minik8s server`, on the same disk in one run, in turns; medians of ROUNDS rounds (default 3)
# with what lies between their least and greatest, and the bars of the project. First one server each, then one each with TLS, then three
# each. About ten minutes; TESTS="one tls three" says which, SCALE=0.1 makes everything a tenth.
#
# usage: etcd.sh [MINIK8S]     (or MINIK8S_BIN; ORACLE: see ../etcd/lib.sh)
#
# The client shares the processors with the server, and the medium: what a put costs the client is in the table, as it bounds the rate.
# Processor time is utime and stime of the server's processes from before the run until 0.4 s behind it (etcd writes its file of pages later
# than it answers), less what they take in the same time with nobody asking; of `minik8s server` the API server, scheduler and controllers
# are in it, which look at each change of the store and find that it is not theirs. "written" is write_bytes of /proc/PID/io for each byte
# of key and value. Watchers are given changes at a fixed rate, so theirs says only whether a server keeps up; their operations are events,
# and the times from a change to each watcher. With three servers the client is on the leader's host, and everything counts for all three; between the servers there
# is TLS, as minik8s knows nothing else.
bin=${1:-${MINIK8S_BIN:-target/release/minik8s}}; rounds=${ROUNDS:-3}; scale=${SCALE:-1}; phases=${TESTS:-one tls three}
bin=$(readlink -f "$bin")
. "$(dirname "$0")/../etcd/lib.sh"
VALUE=256 KEY=8 QUIET=0.4

scaled() { awk -v n="$1" -v s="$scale" 'BEGIN { n = int(n * s); print n < 10 ? 10 : n }'; }
ms() { echo $(($(date +%s%N) / 1000000)); }

declare -A procs host words idle # by side: the servers' pids, the client's host, its words for the connection, idle ticks a second
ticks() { local p sum=0; for p in ${procs[$1]}; do sum=$((sum + $(awk '{print $14+$15}' "/proc/$p/stat"))); done; echo $sum; }
written() { local p sum=0; for p in ${procs[$1]}; do sum=$((sum + $(awk '/^write_bytes/{print $2}' "/proc/$p/io"))); done; echo $sum; }
resident() { local p; for p in ${procs[$1]}; do awk '/^VmRSS/{print $2}' "/proc/$p/status"; done | awk '{s+=$1} END{printf "%.1f", s/1024}'; }
ctl() { local side=$1; shift; $(on "${host[$side]}") "$tools/etcdctl" ${words[$side]} "$@"; }

# One run of the benchmark; a line of figures for it. Operations are requests, or events where there are watchers.
run() { # side, test, operations, bytes put, arguments of etcd-benchmark...
  local side=$1 test=$2 ops=$3 bytes=$4; shift 4
  local cpu disk began; cpu=$(ticks "$side"); disk=$(written "$side"); began=$(ms)
  TIMEFORMAT='%U %S'
  { time $(on "${host[$side]}") "$tools/etcd-benchmark" ${words[$side]} --precise "$@" >"$dir/out" 2>"$dir/err"; } 2>"$dir/client" || { tail -5 "$dir/err" >&2; exit 1; }
  sleep $QUIET
  ! grep -q 'Error distribution' "$dir/out" || { echo "$side, $test: requests failed" >&2; grep -A5 'Error distribution' "$dir/out" >&2; exit 1; }
  # With watchers there are two summaries, the puts' and the events': the last one counts.
  awk -v key="$phase $side $test" -v ops="$ops" -v bytes="$bytes" -v cpu=$(($(ticks "$side") - cpu)) -v disk=$(($(written "$side") - disk)) \
    -v s="$(awk -v a="$began" -v b="$(ms)" 'BEGIN{print (b-a)/1000}')" -v idle="${idle[$side]}" -v rss="$(resident "$side")" -v client="$(cat "$dir/client")" '
    /Requests\/sec/ { rate = $2 } / 50% in/ { p50 = $3 } / 99% in/ { p99 = $3 }
    END { split(client, c, " "); used = (cpu - idle * s) * 10000 / ops; if (used < 0) used = 0
      printf "%s rate=%.0f p50=%.3f p99=%.3f cpu=%.2f client=%.2f rss=%.1f written=%.2f\n", key, rate, p50*1000, p99*1000, used, (c[1]+c[2])*1e6/ops, rss, bytes ? disk/bytes : 0 }' \
    "$dir/out" | tee -a "$dir/results"
}

puts() { # side, test, clients, connections, puts, arguments...
  local side=$1 test=$2 clients=$3 conns=$4 n; n=$(scaled "$5"); shift 5
  run "$side" "$test" "$n" $((n * (VALUE + KEY))) --clients "$clients" --conns "$conns" put --total "$n" --val-size $VALUE --key-size $KEY "$@"
}
reads() { # side, test, clients, connections, reads, consistency
  local n; n=$(scaled "$5")
  run "$1" "$2" "$n" 0 --clients "$3" --conns "$4" range bench --total "$n" --consistency "$6"
}
watches() { # side, streams, watchers a stream, changes, changes a second
  local n; n=$(scaled "$4")
  run "$1" "watch-$(($2 * $3))" $((n * $2 * $3)) 0 --clients 100 --conns 10 watch-latency --streams "$2" --watchers-per-stream "$3" --put-total "$n" --put-rate "$5" --val-size $VALUE
}

# The tests of a phase, each for one side and then for the other.
both() { local what=$1 first=etcd second=minik8s; shift; [ $((round % 2)) = 1 ] || { first=minik8s; second=etcd; }; $what $first "$@"; $what $second "$@"; }
tests() {
  both puts put-1 1 1 3000 --key-space-size 100000
  if [ "$phase" != tls ]; then both puts put-100 100 10 40000 --key-space-size 100000; fi
  both puts put-1000 1000 100 60000 --key-space-size 100000
  if [ "$phase" = one ]; then
    both puts put-1000-seq 1000 100 60000 --key-space-size 100000 --sequential-keys
    both puts put-1000-few 1000 100 60000 --key-space-size 10
    both reads read-1 1 1 5000 l
  fi
  both reads read-1000 1000 100 60000 l
  if [ "$phase" != tls ]; then both reads read-1000-ser 1000 100 60000 s; fi
  if [ "$phase" = one ]; then
    both watches 1 1 1000 500
    both watches 10 10 400 200
    both watches 100 10 100 50
    both watches 100 100 20 10
  fi
}

# Where the client goes: to the host of the one that leads.
lead() { # side, hosts...
  local side=$1 h; shift
  for h; do
    host[$side]=$h
    ctl "$side" endpoint status -w json 2>/dev/null | perl -ne 'exit !(/"member_id":(\d+)/ && ($m = $1) && /"leader":(\d+)/ && $m == $1)' && return 0
  done
  return 1
}
ready() { # side, number of voters, hosts...
  local side=$1 n=$2 h; shift 2
  for h; do
    host[$side]=$h
    [ "$(ctl "$side" member list 2>/dev/null | grep -c ', started, .*, false$')" = "$n" ] && ctl "$side" endpoint health >/dev/null 2>&1 || return 1
  done
}

etcd_up() { # hosts...
  local h all= url=http peer=http more=
  procs[etcd]=; words[etcd]=--endpoints=http://127.0.0.1:2379
  if [ "$phase" = tls ]; then
    url=https; more="--trusted-ca-file $dir/pki/ca.crt --cert-file $dir/pki/server.crt --key-file $dir/pki/server.key --client-cert-auth"
    words[etcd]="--endpoints=https://127.0.0.1:2379 --cacert=$dir/pki/ca.crt --cert=$dir/pki/client.crt --key=$dir/pki/client.key"
  fi
  [ $# = 1 ] || { peer=https; more="$more --peer-auto-tls"; }
  for h; do all=$all,$h=$peer://${address[$h]}:2380; done
  for h; do
    start "$h" $(on "$h") "$tools/etcd" --name "$h" --data-dir "$dir/data-$h" --listen-client-urls $url://127.0.0.1:2379 --advertise-client-urls $url://127.0.0.1:2379 \
      --listen-peer-urls $peer://"${address[$h]}":2380 --initial-advertise-peer-urls $peer://"${address[$h]}":2380 --initial-cluster "${all#,}" --log-level error $more
    procs[etcd]+=" $started"
  done
  await "$1" ready etcd $# "$@"; await "$1" lead etcd "$@"
}
minik8s_up() { # hosts...
  local h url=http d=$dir/data-$1 join=()
  procs[minik8s]=; words[minik8s]=--endpoints=http://127.0.0.1:2379
  if [ "$phase" = tls ]; then
    url=https; words[minik8s]="--endpoints=https://127.0.0.1:2379 --cacert=$d/tls/ca.crt --cert=$d/tls/etcd-client.crt --key=$d/tls/etcd-client.key"
  fi
  for h; do
    start "$h" $(on "$h") "$bin" server --data-dir "$dir/data-$h" --bind "${address[$h]}:6443" --advertise-address "${address[$h]}" --etcd-listen $url://127.0.0.1:2379 "${join[@]}"
    procs[minik8s]+=" $started"
    await "$h" $(on "$h") sh -c "[ \"\$(curl -sk https://${address[$h]}:6443/readyz)\" = ok ]"
    join=(--join "https://${address[$1]}:6443" --token "$(cat "$d/server-token")")
  done
  await "$1" ready minik8s $# "$@"; await "$1" lead minik8s "$@"
}

# Both up, all tests of the phase, both down.
round() { # hosts of etcd, hosts of minik8s
  local side before p value; value=$(head -c $VALUE /dev/zero | tr '\0' x)
  etcd_up $1; minik8s_up $2
  for side in etcd minik8s; do ctl $side put bench "$value" >/dev/null; done
  sleep 1; declare -A before
  for side in etcd minik8s; do before[$side]=$(ticks $side); done
  sleep 3
  for side in etcd minik8s; do
    idle[$side]=$(awk -v t=$(($(ticks $side) - ${before[$side]})) 'BEGIN{print t/3}')
    echo "$phase $side idle=${idle[$side]}" >>"$dir/idle"
  done
  tests
  for p in ${procs[etcd]} ${procs[minik8s]}; do stop "$p"; done
  rm -rf "$dir"/data-*
}

# What the disk does: writes of 256 bytes into a file that is there already, each with a sync, as fdatasync is one.
disk() {
  dd if=/dev/zero of="$dir/disk" bs=1M count=4 conv=fsync 2>/dev/null
  dd if=/dev/zero of="$dir/disk" bs=256 count=2000 oflag=dsync conv=notrunc 2>&1 | awk -F, '/copied/ { for (i=1;i<=NF;i++) if ($i ~ / s$/) printf "%.0f\n", 2000/$i }'
}

table() {
  awk '
    function sort_of(key, f,   i, j, x, n) { n = runs[key]; for (i = 1; i <= n; i++) v[i] = val[key, f, i]
      for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j+1] = v[j]; v[j+1] = x }; return n }
    function med(key, f,   n) { n = sort_of(key, f); return n % 2 ? v[(n+1)/2] : (v[n/2] + v[n/2+1]) / 2 }
    function span(key, f,   n) { n = sort_of(key, f); return v[1] "-" v[n] }
    function ratio(a, b) { return b > 0 ? a / b : 0 }
    function say(bar, holds, what) { printf "  %-7s %s: %s\n", holds ? "holds" : "MISSES", bar, what }
    { key = $1 " " $2 " " $3; test = $1 " " $3; if (!(test in seen)) { seen[test] = 1; order[++tests] = test }
      runs[key]++; for (i = 4; i <= NF; i++) { split($i, p, "="); val[key, p[1], runs[key]] = p[2] } }
    END {
      printf "%-22s %-8s %8s %15s %8s %8s %9s %8s %8s %8s\n", "test", "", "rate/s", "(spread)", "p50 ms", "p99 ms", "cpu us/op", "client", "RSS MB", "written"
      for (t = 1; t <= tests; t++) { split(order[t], w, " ")
        for (s = 1; s <= 2; s++) { side = s == 1 ? "etcd" : "minik8s"; key = w[1] " " side " " w[2]
          printf "%-22s %-8s %8.0f %15s %8.2f %8.2f %9.2f %8.1f %8.1f %8.2f\n", s == 1 ? w[1] " " w[2] : "", side, med(key, "rate"), span(key, "rate"), med(key, "p50"), med(key, "p99"), med(key, "cpu"), med(key, "client"), med(key, "rss"), med(key, "written") }
        e = w[1] " etcd " w[2]; m = w[1] " minik8s " w[2]
        printf "%-22s %-8s %7.2fx %15s %7.2fx %7.2fx %8.2fx\n", "", "ratio", ratio(med(m, "rate"), med(e, "rate")), "", ratio(med(m, "p50"), med(e, "p50")), ratio(med(m, "p99"), med(e, "p99")), ratio(med(m, "cpu"), med(e, "cpu")) }
      print "bars, by medians:"
      for (t = 1; t <= tests; t++) { split(order[t], w, " "); e = w[1] " etcd " w[2]; m = w[1] " minik8s " w[2]
        rate = ratio(med(m, "rate"), med(e, "rate")); cpu = ratio(med(m, "cpu"), med(e, "cpu")); late = ratio(med(m, "p99"), med(e, "p99"))
        if (w[2] ~ /^put-1000/) {
          say(order[t] ", at most 0.25 of the processor time", cpu <= 0.25, sprintf("%.2f", cpu))
          say(order[t] ", at least 1.7 times the rate", rate >= 1.7, sprintf("%.2f", rate))
          say(order[t] ", no worse p99", late <= 1, sprintf("%.2f", late)) }
        if (w[2] == "put-1") say(order[t] ", at least 1.5 times the rate", rate >= 1.5, sprintf("%.2f", rate))
        if (w[2] == "read-1" || w[2] == "read-1000") say(order[t] ", at most 0.25 of the processor time", cpu <= 0.25, sprintf("%.2f", cpu)) }
    }' "$dir/results"
}

declare -A address
host_up etcd1 10.80.0.1; host_up etcd2 10.80.0.2; host_up etcd3 10.80.0.3; host_up m8s1 10.80.0.11; host_up m8s2 10.80.0.12; host_up m8s3 10.80.0.13
for i in 1 2 3; do address[etcd$i]=10.80.0.$i; address[m8s$i]=10.80.0.1$i; done
cert server /CN=etcd IP:127.0.0.1; cert client /CN=client
syncs="$(disk) $(disk) $(disk)"
for phase in $phases; do
  for ((round = 1; round <= rounds; round++)); do
    case $phase in
      one|tls) round etcd1 m8s1 ;;
      three) round "etcd1 etcd2 etcd3" "m8s1 m8s2 m8s3" ;;
    esac
  done
done
syncs="$syncs $(disk) $(disk) $(disk)"
echo
echo "the disk: $(tr ' ' '\n' <<<"$syncs" | sort -n | sed -n '3p') durable writes of 256 bytes a second, one at a time (of $syncs)"
echo "idle, in ticks of 10 ms a second, taken off: $(awk '{split($3,p,"="); k=$1" "$2; s[k]+=p[2]; n[k]++} END{for (k in s) printf "%s %.2f; ", k, s[k]/n[k]}' "$dir/idle")"
table
