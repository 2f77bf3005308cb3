use std::time::Duration;

use super::{bytes, put, put_into};
use crate::{Config, Error, Op, Store, Txn};

fn delete(key: &str) -> Txn {
    Txn { then: vec![Op::Delete { start: bytes(key), end: None }], ..Txn::default() }
}

#[tokio::test]
async fn a_full_store_takes_deletes_only_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { quota_bytes: 100_000, ..Config::new(dir.path()) };
    let mut store = Store::open(config.clone()).await.unwrap();
    let value = "x".repeat(10_000);
    let mut kept = 0;
    while put_into(&store, &format!("{kept}"), &value).await.is_ok() {
        kept += 1;
    }
    assert_eq!(kept, 9, "{:?}", store.status());
    assert_eq!(store.alarms(), [1]);
    let refused = store.txn(put("small", "1")).await;
    assert!(matches!(refused, Err(Error::NoSpace { quota: 100_000, .. })), "{refused:?}");

    // The alarm outlives a restart.
    store.shutdown().await.unwrap();
    store = Store::open(config).await.unwrap();
    assert!(matches!(store.txn(put("small", "1")).await, Err(Error::NoSpace { .. })));
    store.txn(delete("0")).await.unwrap();
    store.txn(delete("1")).await.unwrap();
    put_into(&store, "small", "1").await.unwrap();
    assert!(store.alarms().is_empty());
    assert_eq!(
        store.status().bytes,
        store.snapshot().map.values().map(|kv| 64 + kv.key.len() + kv.value.len()).sum::<usize>() as u64
    );
}

#[tokio::test]
async fn leases_count_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config { quota_bytes: 1000, ..Config::new(dir.path()) }).await.unwrap();
    let mut granted = Vec::new();
    let refused = loop {
        match store.lease_grant(Duration::from_secs(600)).await {
            Ok(id) => granted.push(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace { .. }) && granted.len() == 15, "{refused} after {granted:?}");
    for &id in &granted[..5] {
        store.lease_revoke(id).await.unwrap();
    }
    store.lease_grant(Duration::from_secs(600)).await.unwrap();
    assert!(store.alarms().is_empty());
}
