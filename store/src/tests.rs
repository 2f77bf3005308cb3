//! The whole store, from the outside in: crashes, restarts, watches, three members.

mod backup;
mod crash;
mod members;
mod quota;
mod record;
mod restart;
mod telling;
mod watching;

use std::{future::Future, time::Duration};

use bytes::Bytes;

use crate::{Error, Op, Store, Txn, TxnResult};

/// Long enough for a busy machine; a test that waits longer has failed.
const DEADLINE: Duration = Duration::from_secs(30);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Txn {
    Txn { then: vec![Op::Put { key: bytes(key), value: bytes(value), lease: None }], ..Txn::default() }
}

async fn put_into(store: &Store, key: &str, value: &str) -> Result<TxnResult, Error> {
    store.txn(put(key, value)).await
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// All keys and values, as text.
fn contents(store: &Store) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let snapshot = store.snapshot();
    snapshot.range(b""..b"").map(|kv| (text(&kv.key), text(&kv.value))).collect()
}
