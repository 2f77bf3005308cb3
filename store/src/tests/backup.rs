use std::time::Duration;

use bytes::Bytes;

use crate::{Config, Contents, Error, Op, Store, Txn, restore};

async fn put(store: &Store, key: &'static str, value: &'static str) -> u64 {
    let op =
        Op::Put { key: Bytes::from_static(key.as_bytes()), value: Bytes::from_static(value.as_bytes()), lease: None };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap().revision
}

#[tokio::test]
async fn an_export_becomes_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path().join("first"))).await.unwrap();
    let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
    let at = put(&store, "a", "1").await;
    let (revision, data) = store.export();
    assert_eq!(revision, at);
    let data = Bytes::from(data);
    let later = put(&store, "b", "2").await;
    store.shutdown().await.unwrap();
    assert_eq!(Contents::of(data.clone()), Ok(Contents { revision: at, keys: 1 }));

    let config = Config::new(dir.path().join("second"));
    assert_eq!(restore(&config, data.clone()).unwrap(), Contents { revision: at, keys: 1 });
    let again = restore(&config, data.clone());
    assert!(matches!(&again, Err(Error::Exists { path }) if *path == config.dir), "{again:?}");
    // Twice, as the second start has a checkpoint.
    for round in 0..2 {
        let store = Store::open(config.clone()).await.unwrap();
        let snapshot = store.snapshot();
        let a = snapshot.get(b"a").unwrap();
        assert_eq!((&a.value[..], a.mod_revision), (&b"1"[..], at), "round {round}");
        assert!(snapshot.get(b"b").is_none());
        let watch = store.watch(Bytes::new(), Bytes::new(), later + 1);
        assert!(matches!(watch, Err(Error::Compacted { .. })), "{watch:?}");
        assert_ne!(store.lease_grant(Duration::from_secs(600)).await.unwrap(), lease);
        assert!(put(&store, "c", "3").await > later);
        store.lease_keep_alive(lease).await.unwrap();
        store.shutdown().await.unwrap();
    }

    let mut damaged = data.to_vec();
    damaged[data.len() / 2] ^= 1;
    let third = Config::new(dir.path().join("third"));
    assert!(matches!(restore(&third, damaged.clone().into()), Err(Error::Corrupt { .. })));
    assert!(!third.dir.exists());
    assert!(Contents::of(damaged.into()).is_err());
}
