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
