use std::time::Duration;

use bytes::Bytes;

use crate::{
    Config, Contents, Error, MemberInfo, Op, Recovered, Store, Txn, member_key, prepare_join, recover, restore,
};

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

#[tokio::test]
async fn a_survivor_keeps_what_it_knows_and_leaves_the_others_behind() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(dir.path().join("store"));
    assert!(matches!(recover(&config), Err(Error::Disk { .. })), "there is nothing");
    let store = Store::open(config.clone()).await.unwrap();
    put(&store, "a", "1").await;
    let info = MemberInfo { name: "another".into(), ..MemberInfo::default() };
    let op = Op::Put { key: member_key(7), value: info.encode(), lease: None };
    store.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
    store.change_members(crate::MemberChange::AddLearner(7)).await.unwrap();
    let last = put(&store, "b", "2").await;
    assert!(matches!(recover(&config), Err(Error::InUse { .. })), "it runs");
    store.shutdown().await.unwrap();

    let Recovered { lost, before, unconfirmed, .. } = recover(&config).unwrap();
    assert_eq!((lost, unconfirmed), (vec![info], 0));
    assert!(before.join("log").exists(), "it is still there as it was");
    for round in 0..2 {
        let store = Store::open(config.clone()).await.unwrap();
        let snapshot = store.snapshot();
        assert_eq!(&snapshot.get(b"b").unwrap().value[..], b"2", "round {round}");
        assert!(snapshot.members().is_empty() && snapshot.generation() > 0);
        let group = store.group().borrow().clone();
        assert_eq!((group.voters, group.learners), (vec![1], vec![]));
        assert!(put(&store, "c", "3").await > last + 1000);
        store.shutdown().await.unwrap();
    }
    // One that had joined keeps its number.
    let joined = Config::new(dir.path().join("joined"));
    prepare_join(&joined.dir, 9).unwrap();
    Store::open(joined.clone()).await.unwrap().shutdown().await.unwrap();
    recover(&joined).unwrap();
    let store = Store::open(joined).await.unwrap();
    assert_eq!(store.group().borrow().voters, [9]);
    store.shutdown().await.unwrap();
}
