//! Starts over on what an earlier life left in a real directory.

use std::{fs, path::Path, sync::Arc};

use super::{bytes, contents, in_time, put_into};
use crate::{
    Config, Error, Store, WatchError,
    disk::RealDisk,
    mvcc::Limits,
    raft::{NoPeers, Parts, Sizes},
};

/// A store whose history is so short that the checkpoint has most of it.
async fn open_short(dir: &Path) -> Result<Store, Error> {
    let limits = Limits { revisions: 8, age_ms: u64::MAX / 8, bytes: 1 << 20 };
    Store::open_with(Parts {
        member_id: 1,
        voters: vec![1],
        limits,
        disk: Arc::new(RealDisk),
        log_dir: dir.join("log"),
        snapshot_dir: dir.join("snapshot"),
        checkpoint: Some(dir.join("checkpoint")),
        lock: Some(dir.join("lock")),
        transport: Box::new(NoPeers),
        sizes: Sizes { segment: 64 << 10, cut_after: 16 << 10, tail: 0 },
        quota: crate::QUOTA_BYTES,
    })
    .await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            match fs::copy(&path, &target) {
                // Removed in the meantime, as its time had come.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = Vec::new();
    for life in 0..4 {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(contents(&store), before, "life {life}");
        for n in 0..20 {
            put_into(&store, &format!("{n}"), &format!("{life}")).await.unwrap();
        }
        assert_eq!(store.snapshot().revision(), 1 + 20 * (life + 1));
        before = contents(&store);
        store.shutdown().await.unwrap();
        assert!(matches!(put_into(&store, "late", "").await, Err(Error::Closed)));
    }
    // The history has survived as well: a watcher goes on where it was three lives ago.
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    let mut watcher = store.watch(bytes("7"), bytes("8"), 10).unwrap();
    for life in 1..4u64 {
        let batch = in_time("an old event", watcher.next()).await.unwrap();
        assert_eq!((batch.revision, &batch.events[0].kv.value[..]), (1 + 20 * life + 8, life.to_string().as_bytes()));
    }
    assert_eq!(watcher.try_next(), Ok(None));
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert!(matches!(Store::open(Config::new(dir.path())).await, Err(Error::InUse { .. })));
    store.shutdown().await.unwrap();
    Store::open(Config::new(dir.path())).await.unwrap().shutdown().await.unwrap();
}

/// As a kill leaves it: copied while clients write, then opened. What was acknowledged before the copy is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_copied_in_the_middle_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    let (acknowledged, mut newest) = tokio::sync::watch::channel(0u64);
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 1.. {
                if put_into(&store, &format!("{n:06}"), "v").await.is_err() {
                    break;
                }
                acknowledged.send_replace(n);
            }
        }
    });
    for copies in 1..6u64 {
        in_time("writes", newest.wait_for(|&n| n > copies * 50)).await.unwrap();
        let safe = *newest.borrow();
        let target = dir.path().join(format!("copy-{copies}"));
        for part in ["log", "snapshot", "checkpoint"] {
            copy(&dir.path().join(part), &target.join(part));
        }
        let copied = Store::open(Config::new(&target)).await.unwrap();
        let snapshot = copied.snapshot();
        for n in 1..=safe {
            let kv = snapshot.get(format!("{n:06}").as_bytes()).unwrap_or_else(|| panic!("copy {copies} lost {n}"));
            assert_eq!(kv.version, 1);
        }
        assert_eq!(snapshot.revision(), 1 + snapshot.len() as u64);
        copied.shutdown().await.unwrap();
    }
    store.shutdown().await.unwrap();
    writing.await.unwrap();
}

#[tokio::test]
async fn a_lost_or_damaged_checkpoint_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_short(dir.path()).await.unwrap();
    for n in 0..300 {
        put_into(&store, &format!("{:03}", n % 200), &format!("{n} {}", "x".repeat(200))).await.unwrap();
    }
    let before = contents(&store);
    store.shutdown().await.unwrap();
    assert!(fs::read_dir(dir.path().join("log")).unwrap().count() < 3, "the log has been cut");

    let checkpoint = dir.path().join("checkpoint");
    let damage: [(&str, &dyn Fn()); 5] = [
        ("untouched", &|| {}),
        ("removed", &|| fs::remove_dir_all(&checkpoint).unwrap()),
        ("bytes flipped", &|| {
            let mut data = fs::read(checkpoint.join("db")).unwrap();
            data.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
            fs::write(checkpoint.join("db"), data).unwrap();
        }),
        ("cut short", &|| {
            let file = fs::OpenOptions::new().write(true).open(checkpoint.join("db")).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        // A whole database that is not what was written: as when sled brings back an old page.
        ("a key missing", &|| {
            let db = sled::open(&checkpoint).unwrap();
            assert!(db.remove(b"k007").unwrap().is_some());
            db.flush().unwrap();
        }),
    ];
    for (what, damage) in damage {
        damage();
        let store = open_short(dir.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(contents(&store), before, "{what}");
        assert_eq!(store.snapshot().revision(), 301, "{what}");
        store.shutdown().await.unwrap();
    }
    assert!(dir.path().join("checkpoint.damaged").exists(), "what could not be used is kept to be looked into");
}

/// The checkpoint is what a start reads, not the snapshot: it must follow the history's end.
#[tokio::test]
async fn the_checkpoint_follows() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_short(dir.path()).await.unwrap();
    for n in 0..100 {
        put_into(&store, &format!("{}", n % 10), &format!("{n}")).await.unwrap();
    }
    let oldest = store.status().oldest_revision;
    assert!(oldest > 80, "{oldest}");
    store.shutdown().await.unwrap();
    let (_, image) = crate::checkpoint::Checkpoint::open(&dir.path().join("checkpoint")).unwrap();
    assert_eq!(image.map(|image| image.base.revision), Some(oldest));
    let store = open_short(dir.path()).await.unwrap();
    assert_eq!(store.status().oldest_revision, oldest, "the history begins where it began");
    assert!(matches!(store.watch(bytes(""), bytes(""), oldest), Err(Error::Compacted { .. })));
    let mut watcher = store.watch(bytes(""), bytes(""), oldest + 1).unwrap();
    assert_eq!(in_time("an old event", watcher.next()).await.unwrap().revision, oldest + 1);
    store.shutdown().await.unwrap();
    // What was committed is still delivered after the end, and then the end.
    while let Ok(Some(batch)) = watcher.try_next() {
        assert!(batch.revision <= 101);
    }
    assert_eq!((watcher.progress(), watcher.try_next()), (101, Err(WatchError::Closed)));
}

#[tokio::test]
async fn a_damaged_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    for n in 0..50 {
        put_into(&store, &format!("{n}"), "v").await.unwrap();
    }
    store.shutdown().await.unwrap();
    let log = fs::read_dir(dir.path().join("log")).unwrap().next().unwrap().unwrap().path();
    let mut data = fs::read(&log).unwrap();
    data[700] ^= 1;
    fs::write(&log, data).unwrap();
    let opened = Store::open(Config::new(dir.path())).await.map(|_| ());
    assert!(
        matches!(&opened, Err(error @ Error::Corrupt { .. }) if error.to_string().contains("restore")),
        "{opened:?}"
    );
}

/// A log removed by hand must not make an empty store of a full one.
#[tokio::test]
async fn a_removed_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    put_into(&store, "a", "v").await.unwrap();
    store.shutdown().await.unwrap();
    for segment in fs::read_dir(dir.path().join("log")).unwrap() {
        fs::remove_file(segment.unwrap().path()).unwrap();
    }
    let opened = Store::open(Config::new(dir.path())).await.map(|_| ());
    assert!(matches!(&opened, Err(Error::Corrupt { reason, .. }) if reason.contains("missing")), "{opened:?}");
}
