//! What servers say to each other.

use std::collections::BTreeMap;

use store::{MemberInfo, Op, Txn, member_key};

use super::*;

/// A body of which nothing comes, and no end.
fn endless() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>())
}

#[tokio::test]
async fn a_server_that_is_removed_is_listened_to_no_longer() {
    let cluster = Cluster::start().await;
    let app = cluster.server.app.clone();
    let request = Request::post(paths::RAFT)
        .header("minik8s-member", "7")
        .header("minik8s-url", "https://10.1.2.7:6443")
        .body(endless())
        .unwrap();
    let answer = tokio::spawn(cluster.server.service(Identity::master(pki::SERVER)).oneshot(request));
    let listened = async {
        while !app.peers.addresses(&BTreeMap::new()).contains_key(&7) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, listened).await.expect("it is listened to");
    let info = MemberInfo { name: "s7".into(), removed: true, ..MemberInfo::default() };
    let put = Op::Put { key: member_key(7), value: info.encode(), lease: None };
    app.store.raw().txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time").unwrap().unwrap();
    let answer = read(answer).await;
    assert_eq!((answer.code, answer.body["message"].as_str()), (410, Some(crate::members::REMOVED)));
}

/// Whatever it takes this server for, a peer is told first that it has to join anew, or has been removed.
#[tokio::test]
async fn whoever_looks_for_another_server_is_told_what_concerns_it_most() {
    let cluster = Cluster::start().await;
    let store = cluster.server.app.store.raw();
    let ours = store.status().member_id;
    let removed = MemberInfo { name: "s7".into(), removed: true, ..MemberInfo::default() };
    let ops =
        [(member_key(7), removed.encode()), (Bytes::from_static(b"/minik8s/generation"), Bytes::from_static(b"3"))];
    let then = ops.into_iter().map(|(key, value)| Op::Put { key, value, lease: None }).collect();
    store.txn(Txn { then, ..Txn::default() }).await.unwrap();
    for (to, member, generation, expected) in [
        (ours, 8, "3", 200),
        (ours + 1, 8, "3", 409),
        (ours + 1, 8, "2", 412),
        (ours + 1, 7, "3", 410),
        (ours, 7, "2", 412),
    ] {
        let request = Request::post(paths::RAFT)
            .header("minik8s-member", format!("{member:x}"))
            .header("minik8s-url", "https://10.1.2.7:6443")
            .header("minik8s-to", format!("{to:016x}"))
            .header("minik8s-generation", generation)
            .body(Body::empty())
            .unwrap();
        let answer = cluster.server.service(Identity::master(pki::SERVER)).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), expected, "member {member} of life {generation} looks for {to}");
    }
}
