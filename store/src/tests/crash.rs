//! Power cuts at every kind of moment, on a disk that loses and tears what was not synced.

use std::sync::{Arc, Mutex};

use super::{bytes, in_time, put_into};
use crate::{
    Error, Store,
    disk::memory::MemoryDisk,
    mvcc::Limits,
    raft::{Parts, Sizes},
};

/// Small enough that a short run goes through everything: trims, snapshots, cuts of the log, new segments.
fn parts(disk: &MemoryDisk) -> Parts {
    let limits = Limits { revisions: 10, age_ms: u64::MAX / 8, bytes: 1 << 20 };
    let sizes = Sizes { segment: 4 << 10, cut_after: 4 << 10, tail: 0 };
    Parts { sizes, ..Parts::on_disk(1, limits, Arc::new(disk.clone())) }
}

const CLIENTS: usize = 4;
const EACH: usize = 25;

/// Clients put keys of their own, each once, until the disk fails; answers the keys acknowledged. Half of them do the work
/// themselves, the others have it done by the store's thread.
async fn run(disk: &MemoryDisk) -> Vec<String> {
    let Ok(store) = Store::open_with(parts(disk)).await else { return Vec::new() };
    let (working, work) = store.on_this_thread();
    let work = tokio::spawn(work);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let store = if client % 2 == 0 { store.clone() } else { working.clone() };
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    let key = format!("{client}/{n}");
                    match put_into(&store, &key, &"v".repeat(100)).await {
                        Ok(_) => acknowledged.lock().unwrap().push(key),
                        Err(error) => {
                            assert!(matches!(error, Error::Fatal { .. }), "{error}");
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    // An error here is the failed disk's, which the clients have seen too.
    let _ = store.shutdown().await;
    work.abort();
    let acknowledged = acknowledged.lock().unwrap();
    acknowledged.clone()
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_power_cut() {
    let quiet = MemoryDisk::default();
    assert_eq!(in_time("the run without faults", run(&quiet)).await.len(), CLIENTS * EACH);
    let operations = quiet.operations();
    for fuse in (0..operations).step_by(3) {
        let disk = MemoryDisk::default();
        disk.fail_after(fuse);
        let acknowledged = in_time("the run", run(&disk)).await;
        for seed in 0..2 {
            let disk = disk.after_power_cut(seed * 7919 + fuse);
            let store = Store::open_with(parts(&disk)).await.unwrap_or_else(|error| panic!("fuse {fuse}: {error}"));
            let snapshot = store.snapshot();
            for key in &acknowledged {
                let kv = snapshot.get(key.as_bytes()).unwrap_or_else(|| panic!("fuse {fuse}: {key} is lost"));
                assert_eq!(kv.version, 1, "fuse {fuse}: {key} was written twice");
            }
            // Each revision made one key: nothing else was written, and nothing half.
            assert_eq!(snapshot.revision(), 1 + snapshot.len() as u64, "fuse {fuse}");
            assert!(snapshot.len() <= acknowledged.len() + CLIENTS, "fuse {fuse}: more than was under way");
            put_into(&store, "after", "1").await.unwrap_or_else(|error| panic!("fuse {fuse}: {error}"));
            store.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_failed_disk_ends_the_store_with_the_reason() {
    let disk = MemoryDisk::default();
    let store = Store::open_with(parts(&disk)).await.unwrap();
    store_on_failing_disk(&disk, store).await;
}

#[tokio::test]
async fn a_failed_disk_ends_the_store_whoever_notices() {
    let disk = MemoryDisk::default();
    let (store, work) = Store::open_with(parts(&disk)).await.unwrap().on_this_thread();
    let work = tokio::spawn(work);
    store_on_failing_disk(&disk, store).await;
    work.abort();
}

async fn store_on_failing_disk(disk: &MemoryDisk, store: Store) {
    let mut watcher = store.watch(bytes(""), bytes(""), 0).unwrap();
    put_into(&store, "a", "1").await.unwrap();
    disk.fail_after(0);
    let failed = in_time("the write", put_into(&store, "b", "1")).await;
    assert!(matches!(&failed, Err(Error::Fatal { reason }) if reason.contains("simulated disk failure")), "{failed:?}");
    assert!(matches!(in_time("the end", store.ended()).await, Error::Fatal { .. }));
    assert!(matches!(put_into(&store, "c", "1").await, Err(Error::Fatal { .. })), "nothing is tried again");
    assert!(matches!(store.read_barrier().await, Err(Error::Fatal { .. })));
    assert!(matches!(store.shutdown().await, Err(Error::Fatal { .. })));
    // Watchers are told what was committed, and then that it is over.
    assert_eq!(watcher.next().await.unwrap().events[0].kv.key, "a");
    assert_eq!(in_time("the watcher's end", watcher.next()).await, Err(crate::WatchError::Closed));
    assert!(store.snapshot().get(b"b").is_none(), "what was not acknowledged is not shown");
}

/// Nobody's proposal is left lying, however those who can carry it out get into each other's way.
#[test]
fn threads_that_do_their_own_work_leave_none() {
    const THREADS: u64 = 3;
    const PUTS: u64 = 2000;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = runtime.block_on(Store::open_with(parts(&MemoryDisk::default()))).unwrap();
    let put_all = |store: Store, thread: u64| async move {
        for n in 0..PUTS {
            in_time("a put", put_into(&store, &format!("{thread}/{}", n % 7), "v")).await.unwrap();
        }
    };
    std::thread::scope(|scope| {
        for thread in 1..THREADS {
            let store = &store;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (store, work) = store.on_this_thread();
                let work = runtime.spawn(work);
                runtime.block_on(put_all(store, thread));
                work.abort();
            });
        }
        runtime.block_on(put_all(store.clone(), 0));
    });
    assert_eq!(store.snapshot().revision(), 1 + THREADS * PUTS);
    runtime.block_on(store.shutdown()).unwrap();
}
