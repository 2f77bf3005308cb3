//! Watches: ordered, unique, complete, resumable.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{DEADLINE, bytes, in_time, put, put_into};
use crate::{
    Config, Error, EventKind, Op, Revision, Store, Txn, WatchError, Watcher,
    disk::memory::MemoryDisk,
    mvcc::Limits,
    raft::Parts,
    types::{in_range, prefix_end},
};

async fn store() -> Store {
    Store::in_memory(Config::new("")).await.unwrap()
}

fn key_range(prefix: &str) -> (bytes::Bytes, bytes::Bytes) {
    (bytes(prefix), prefix_end(prefix.as_bytes()))
}

async fn revisions(watcher: &mut Watcher, last: Revision) -> Vec<Revision> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.push(in_time("an event", watcher.next()).await.unwrap().revision);
    }
    seen
}

#[tokio::test]
async fn ranges_see_what_is_theirs() {
    let store = store().await;
    let ranges = [
        ("a/", key_range("a/")),
        ("a/b/", key_range("a/b/")),
        ("all", key_range("")),
        ("one key", (bytes("a/b/1"), bytes("a/b/1\0"))),
        ("odd range", (bytes("a/b/2"), bytes("c"))),
    ];
    let mut watchers: Vec<_> =
        ranges.iter().map(|(_, (start, end))| store.watch(start.clone(), end.clone(), 0).unwrap()).collect();
    let keys = ["a/b/1", "a/b/2", "a/c", "b", "c", "a", "a/", "zz", "a/b/1"];
    for key in keys {
        put_into(&store, key, "v").await.unwrap();
    }
    put_into(&store, "a/b/1", "end").await.unwrap();
    for ((what, (start, end)), watcher) in ranges.iter().zip(&mut watchers) {
        let expected: Vec<_> = keys
            .iter()
            .chain(&["a/b/1"])
            .zip(2..)
            .filter(|(key, _)| in_range(key.as_bytes(), start, end))
            .map(|(_, revision)| revision)
            .collect();
        assert_eq!(revisions(watcher, *expected.last().unwrap()).await, expected, "{what}");
        assert_eq!(watcher.try_next(), Ok(None), "{what}");
        assert_eq!(watcher.progress(), 11, "{what}");
    }
}

#[tokio::test]
async fn one_transaction_is_one_batch_and_filtered() {
    let store = store().await;
    let (start, end) = key_range("a/");
    let mut watcher = store.watch(start, end, 0).unwrap();
    let ops = ["a/1", "b/1", "a/2"].map(|key| Op::Put { key: bytes(key), value: bytes("v"), lease: None });
    store.txn(Txn { then: ops.into(), ..Txn::default() }).await.unwrap();
    let batch = in_time("the batch", watcher.next()).await.unwrap();
    let keys: Vec<_> = batch.events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!((batch.revision, keys), (2, vec![bytes("a/1"), bytes("a/2")]));
}

#[tokio::test]
async fn from_the_past_and_from_the_future() {
    let store = store().await;
    for n in 0..10 {
        put_into(&store, "k", &n.to_string()).await.unwrap();
    }
    let (start, end) = key_range("");
    let mut past = store.watch(start.clone(), end.clone(), 5).unwrap();
    let mut future = store.watch(start.clone(), end.clone(), 14).unwrap();
    assert_eq!(future.try_next(), Ok(None));
    assert_eq!(future.progress(), 11, "it promises nothing that has not happened");
    for n in 0..5 {
        put_into(&store, "k", &n.to_string()).await.unwrap();
    }
    assert_eq!(revisions(&mut past, 16).await, (5..17).collect::<Vec<_>>());
    assert_eq!(revisions(&mut future, 16).await, [14, 15, 16]);
}

#[tokio::test]
async fn compacted_revisions_cannot_be_watched() {
    let store = store().await;
    for n in 0..10 {
        put_into(&store, "k", &n.to_string()).await.unwrap();
    }
    let (start, end) = key_range("");
    let mut behind = store.watch(start.clone(), end.clone(), 3).unwrap();
    store.compact(6).await.unwrap();
    let refused = store.watch(start.clone(), end.clone(), 5).map(|_| ());
    assert!(matches!(refused, Err(Error::Compacted { requested: 5, oldest: 6 })), "{refused:?}");
    assert_eq!(in_time("its end", behind.next()).await, Err(WatchError::Compacted { delivered: 2, oldest: 5 }));
    let mut first = store.watch(start, end, 6).unwrap();
    assert_eq!(revisions(&mut first, 11).await, [6, 7, 8, 9, 10, 11]);
    assert!(matches!(store.snapshot_at(5), Err(Error::Compacted { requested: 5, oldest: 6 })));
    assert!(matches!(store.snapshot_at(12), Err(Error::Future { requested: 12, current: 11 })));
    assert_eq!(&store.snapshot_at(6).unwrap().get(b"k").unwrap().value[..], b"4");
}

#[tokio::test]
async fn a_slow_watcher_is_told_and_resumes() {
    let limits = Limits { revisions: 100, age_ms: u64::MAX / 8, bytes: 1 << 20 };
    let store = Store::open_with(Parts::on_disk(1, limits, Arc::new(MemoryDisk::default()))).await.unwrap();
    let (start, end) = key_range("");
    let mut slow = store.watch(start.clone(), end.clone(), 0).unwrap();
    let mut quick = store.watch(start.clone(), end.clone(), 0).unwrap();
    put_into(&store, "k", "first").await.unwrap();
    assert_eq!(in_time("the first", slow.next()).await.unwrap().revision, 2);
    // More than the ring holds, and more than the history does.
    for n in 0..2000 {
        put_into(&store, "k", &n.to_string()).await.unwrap();
        assert!(quick.try_next().unwrap().is_some(), "who keeps up loses nothing");
    }
    assert_eq!(slow.next().await, Err(WatchError::Slow { delivered: 2 }));
    let oldest = store.status().oldest_revision;
    let mut resumed = store.watch(start, end, oldest + 1).unwrap();
    assert_eq!(revisions(&mut resumed, 2002).await.len() as u64, 2002 - oldest);
    // A watcher that has nothing to see is never too slow.
    let mut idle = store.watch(bytes("x"), bytes("y"), 0).unwrap();
    for n in 0..300 {
        put_into(&store, "k", &n.to_string()).await.unwrap();
    }
    put_into(&store, "x", "at last").await.unwrap();
    assert_eq!(in_time("its event", idle.next()).await.unwrap().revision, 2303);
}

#[tokio::test]
async fn a_watch_of_a_closed_store_ends() {
    let store = store().await;
    put_into(&store, "k", "v").await.unwrap();
    store.shutdown().await.unwrap();
    let (start, end) = key_range("k");
    let mut watcher = store.watch(start, end, 2).unwrap();
    assert_eq!(in_time("what there was", watcher.next()).await.unwrap().revision, 2);
    assert_eq!(in_time("its end", watcher.next()).await, Err(WatchError::Closed));
}

/// Many writers, many watchers that come and go and resume: each sees every event of its range once, in order, and
/// ends with the state that the store has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordered_unique_complete_and_resumable() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 300;
    const WATCHERS: usize = 20;
    let store = store().await;
    let watching: Vec<_> = (0..WATCHERS)
        .map(|n| {
            let store = store.clone();
            let (start, end) = key_range(["", "1/", "2/"][n % 3]);
            tokio::spawn(async move {
                let (mut state, mut cursor, mut count) = (BTreeMap::new(), 1, 0u64);
                'resume: loop {
                    let mut watcher = store.watch(start.clone(), end.clone(), cursor + 1).unwrap();
                    for _ in 0..(50 + n) {
                        let Ok(next) = tokio::time::timeout(DEADLINE, watcher.next()).await else { break 'resume };
                        let batch = match next {
                            Ok(batch) => batch,
                            Err(WatchError::Closed) => break 'resume,
                            Err(error) => panic!("{error}"),
                        };
                        assert!(batch.revision > cursor, "watcher {n}: {} after {cursor}", batch.revision);
                        cursor = batch.revision;
                        count += batch.events.len() as u64;
                        for event in &batch.events {
                            match event.kind {
                                EventKind::Put => drop(state.insert(event.kv.key.clone(), event.kv.clone())),
                                EventKind::Delete => drop(state.remove(&event.kv.key)),
                            }
                        }
                    }
                }
                (start, end, state, count)
            })
        })
        .collect();
    let writing: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let key = format!("{writer}/{}", n % 7);
                    let txn = match n % 5 {
                        4 => Txn { then: vec![Op::Delete { start: bytes(&key), end: None }], ..Txn::default() },
                        _ => put(&key, &n.to_string()),
                    };
                    store.txn(txn).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writing {
        in_time("the writers", writer).await.unwrap();
    }
    store.shutdown().await.unwrap();
    let last = store.snapshot();
    for watcher in watching {
        let (start, end, state, count) = in_time("the watchers", watcher).await.unwrap();
        let expected: BTreeMap<_, _> = last.range(&start..&end).map(|kv| (kv.key.clone(), kv.clone())).collect();
        assert_eq!(state, expected);
        if start.is_empty() {
            assert_eq!(count, last.revision() - 1, "every revision once");
        }
    }
}

#[tokio::test]
async fn leases_end_and_their_keys_go() {
    let store = store().await;
    let lease = store.lease_grant(Duration::from_millis(50)).await.unwrap();
    let kept = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
    for (key, lease) in [("gone", lease), ("stays", kept)] {
        let op = Op::Put { key: bytes(key), value: bytes("v"), lease: Some(lease) };
        store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    }
    let (start, end) = key_range("");
    let mut watcher = store.watch(start, end, 4).unwrap();
    let batch = in_time("the lease's end", watcher.next()).await.unwrap();
    assert_eq!((batch.events[0].kind, batch.events[0].kv.key.clone()), (EventKind::Delete, bytes("gone")));
    assert!(matches!(store.lease_keep_alive(lease).await, Err(Error::LeaseNotFound { .. })));
    store.lease_keep_alive(kept).await.unwrap();
    store.lease_revoke(kept).await.unwrap();
    assert!(store.snapshot().is_empty());
}

#[tokio::test]
async fn a_key_is_changed_once_in_a_transaction() {
    let store = store().await;
    let put = |key: &str| Op::Put { key: bytes(key), value: bytes("v"), lease: None };
    let delete = |start: &str, end: Option<&str>| Op::Delete { start: bytes(start), end: end.map(bytes) };
    for (then, good) in [
        (vec![put("a"), put("b"), delete("c", None)], true),
        (vec![put("a"), put("a")], false),
        (vec![put("a"), delete("a", None)], false),
        (vec![delete("a", Some("c")), put("b")], false),
        (vec![delete("a", Some("c")), put("c")], true),
    ] {
        let result = store.txn(Txn { then: then.clone(), ..Txn::default() }).await;
        assert_eq!(result.is_ok(), good, "{then:?}: {result:?}");
    }
    let large = store.txn(super::put("large", &"x".repeat(9 << 20))).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
}
