//! What etcd's own robustness tests found in etcd, by the numbers of its issues, each as a scenario here.
//!
//! The others of that list are elsewhere: a lost write of a single node and revisions that differ after a crash (14370,
//! 13766) in `crash`; events lost by a starved stream (17529) and old events of a watch of the future (20221) in `watching`;
//! stale reads after a pause (20418) in `members` and the simulation; a damaged database (20271) in `restart`; a read of a
//! compacted revision inside a transaction (18667) in `etcd::tests`. There is no defragmentation to crash (14685).

use std::{collections::BTreeMap, sync::Arc};

use super::{bytes, in_time, members::Group, put, put_into};
use crate::{
    EventKind, Op, Store, Txn,
    disk::memory::MemoryDisk,
    mvcc::Limits,
    raft::{Parts, Sizes},
};

fn delete(key: &str) -> Txn {
    Txn { then: vec![Op::Delete { start: bytes(key), end: None }], ..Txn::default() }
}

fn parts(disk: &MemoryDisk) -> Parts {
    let limits = Limits { revisions: 1000, age_ms: u64::MAX / 8, bytes: 1 << 20 };
    let sizes = Sizes { segment: 4 << 10, cut_after: 4 << 10, tail: 0 };
    Parts { sizes, ..Parts::on_disk(1, limits, Arc::new(disk.clone())) }
}

/// 18089, 19179: whoever lists at a revision, and watches from it on, is told what was deleted there, compacted or not.
#[tokio::test]
async fn a_delete_at_the_compacted_revision_is_told() {
    let store = Store::open_with(parts(&MemoryDisk::default())).await.unwrap();
    put_into(&store, "a", "1").await.unwrap();
    let deleted = store.txn(delete("a")).await.unwrap().revision;
    put_into(&store, "b", "1").await.unwrap();
    store.compact(deleted).await.unwrap();
    // Whatever is trimmed is trimmed with the next write.
    put_into(&store, "c", "1").await.unwrap();
    let mut watcher = store.watch(bytes(""), bytes(""), deleted).unwrap();
    let first = in_time("the delete", watcher.next()).await.unwrap();
    assert_eq!((first.revision, first.events[0].kind), (deleted, EventKind::Delete));
    assert_eq!(in_time("what follows", watcher.next()).await.unwrap().revision, deleted + 1);
}

/// 17780: a crash while the history is compacted takes no revision back.
#[tokio::test]
async fn a_crash_in_a_compaction_takes_no_revision_back() {
    let run = async |disk: &MemoryDisk| -> u64 {
        let Ok(store) = Store::open_with(parts(disk)).await else { return 0 };
        let mut acknowledged = 0;
        for n in 0..60 {
            match put_into(&store, &format!("{}", n % 5), &"v".repeat(80)).await {
                Ok(result) => acknowledged = result.revision,
                Err(_) => break,
            }
            if n % 4 == 3 && store.compact(acknowledged - 1).await.is_err() {
                break;
            }
        }
        let _ = store.shutdown().await;
        acknowledged
    };
    let quiet = MemoryDisk::default();
    assert_eq!(in_time("the run without faults", run(&quiet)).await, 61);
    for fuse in (0..quiet.operations()).step_by(3) {
        let disk = MemoryDisk::default();
        disk.fail_after(fuse);
        let acknowledged = in_time("the run", run(&disk)).await;
        let store = Store::open_with(parts(&disk.after_power_cut(fuse))).await.unwrap();
        let now = store.snapshot().revision();
        assert!(now >= acknowledged, "fuse {fuse}: {now} after {acknowledged}");
        assert!(put_into(&store, "after", "1").await.unwrap().revision > now);
        store.shutdown().await.unwrap();
    }
}

/// 15271: a watch on a member that was cut off, and is sent a snapshot, goes on where it was and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_does_not_go_back_after_a_partition() {
    let group = Group::start().await;
    let leader = group.leader(&[1, 2, 3]).await;
    let lonely = (1..=3).find(|&id| id != leader).unwrap();
    let others: Vec<u64> = (1..=3).filter(|&id| id != lonely).collect();
    group.put(&others, "before", "1").await;
    group.all_equal().await;
    let mut watcher = group.stores[&lonely].watch(bytes(""), bytes(""), 2).unwrap();
    let mut newest = in_time("the first", watcher.next()).await.unwrap().revision;
    group.network.cut(lonely);
    // More than the others keep of the log for him.
    for n in 0..150 {
        group.put(&others, &format!("{n}"), &"x".repeat(300)).await;
    }
    group.network.heal();
    group.all_equal().await;
    group.put(&[lonely], "after", "1").await;
    // It is told everything in order, or that it has missed something: then it lists and watches anew.
    let end = loop {
        match in_time("an event", watcher.next()).await {
            Ok(batch) => {
                assert_eq!(batch.revision, newest + 1, "in order, and nothing left out");
                newest = batch.revision;
                if batch.events[0].kv.key == "after" {
                    break None;
                }
            }
            Err(error) => break Some(error),
        }
    };
    if let Some(error) = end {
        let from = group.stores[&lonely].snapshot().revision() + 1;
        let mut again = group.stores[&lonely].watch(bytes(""), bytes(""), from).unwrap();
        group.put(&[lonely], "again", "1").await;
        let next = in_time("what is new", again.next()).await.unwrap();
        assert!(next.revision > newest, "{error}");
    }
    group.stop().await;
}

/// 18055: two snapshots in a short time, and both are taken; a member that restarts in between comes up each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_snapshots_in_a_short_time() {
    let mut group = Group::start().await;
    let leader = group.leader(&[1, 2, 3]).await;
    let lonely = (1..=3).find(|&id| id != leader).unwrap();
    let others: Vec<u64> = (1..=3).filter(|&id| id != lonely).collect();
    for round in 0..3 {
        group.network.cut(lonely);
        for n in 0..120 {
            group.put(&others, &format!("{n}"), &format!("{round} {}", "x".repeat(300))).await;
        }
        group.network.heal();
        group.all_equal().await;
        group.restart(lonely).await;
    }
    group.all_equal().await;
    let store = &group.stores[&lonely];
    let values: BTreeMap<_, _> =
        store.snapshot().range(b""..b"").map(|kv| (kv.key.clone(), kv.value.clone())).collect();
    assert_eq!(values.len(), 120);
    assert!(values.values().all(|value| value.starts_with(b"2 ")));
    group.stop().await;
}

/// 15220: what a watcher is told of its progress is never ahead of the events that it has been given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_not_ahead_of_events() {
    let store = Store::open_with(parts(&MemoryDisk::default())).await.unwrap();
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for n in 0..500 {
            writer.txn(put("k", &n.to_string())).await.unwrap();
        }
    });
    let mut watcher = store.watch(bytes(""), bytes(""), 0).unwrap();
    let mut given = store.snapshot().revision().min(1);
    while given < 501 {
        let progress = watcher.progress();
        match watcher.try_next().unwrap() {
            Some(batch) => {
                assert!(batch.revision > progress, "{} came after a progress of {progress}", batch.revision);
                given = batch.revision;
            }
            None => tokio::task::yield_now().await,
        }
    }
    in_time("the writer", writing).await.unwrap();
}
