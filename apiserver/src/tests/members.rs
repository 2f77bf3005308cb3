//! Members as clients of the etcd API change them, on a server that leads alone.

use std::cell::Cell;

use ::store::{
    MemberInfo,
    etcd::{Cluster as _, ClusterChange, ClusterError},
};

use super::*;
use crate::members::{
    etcd::{EtcdCluster, moved},
    revise,
};

const HERE: &str = "https://192.0.2.1:6443";
const THERE: &str = "https://192.0.2.2:6443";

impl Cluster {
    async fn change(&self, change: ClusterChange) -> Result<u64, ClusterError> {
        EtcdCluster(self.server.app.clone()).change(change).await
    }

    async fn add(&self, url: &str) -> Result<u64, ClusterError> {
        self.change(ClusterChange::Add { peer_urls: vec![url.into()] }).await
    }

    async fn update(&self, id: u64, url: &str) -> Result<u64, ClusterError> {
        self.change(ClusterChange::Update { id, peer_urls: vec![url.into()] }).await
    }

    fn member(&self, id: u64) -> MemberInfo {
        self.server.app.store.raw().snapshot().members().remove(&id).expect("it is written down")
    }

    fn has_member(&self, id: u64) -> bool {
        self.server.app.store.raw().group().borrow().has(id)
    }
}

#[tokio::test]
async fn every_answer_is_of_the_change_before() {
    let cluster = Cluster::start().await;
    for _ in 0..10 {
        let id = cluster.add(HERE).await.unwrap();
        assert!(cluster.has_member(id));
        assert_eq!(cluster.add(HERE).await, Err(ClusterError::Exists));
        assert_eq!(
            cluster.change(ClusterChange::Promote(id)).await,
            Err(ClusterError::NotInSync),
            "nobody has started it"
        );
        assert_eq!(cluster.update(id, THERE).await, Ok(id));
        assert_eq!(cluster.member(id).peer_urls, [THERE]);
        assert_eq!(cluster.change(ClusterChange::Remove(id)).await, Ok(id));
        assert!(!cluster.has_member(id));
        for change in [
            ClusterChange::Remove(id),
            ClusterChange::Promote(id),
            ClusterChange::Update { id, peer_urls: vec![HERE.into()] },
        ] {
            assert_eq!(cluster.change(change.clone()).await, Err(ClusterError::NotFound), "{change:?}");
        }
    }
}

#[tokio::test]
async fn no_two_members_are_at_one_address() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.add(HERE).await.unwrap(), cluster.add(THERE).await.unwrap());
    assert_eq!(cluster.update(one, THERE).await, Err(ClusterError::Exists));
    assert_eq!(cluster.update(one, HERE).await, Ok(one), "where it is already");
    assert_eq!(cluster.change(ClusterChange::Remove(two)).await, Ok(two));
    assert_eq!(cluster.update(one, THERE).await, Ok(one), "nobody is there any more");
}

/// What is done where an update has looked and not written yet.
async fn update_around(cluster: &Cluster, id: u64, between: ClusterChange) -> Result<(), ClusterError> {
    let looks = Cell::new(0);
    let decide = |members| {
        let decided = moved(members, id, &[THERE.into()]);
        if looks.replace(looks.get() + 1) == 0 {
            let changed = cluster.change(between.clone());
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(changed)).unwrap();
        }
        decided
    };
    let updated = revise(&cluster.server.app, id, decide).await.unwrap();
    assert_eq!(looks.get(), 2, "it has to look again");
    updated
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_meanwhile_stays_removed() {
    let cluster = Cluster::start().await;
    let id = cluster.add(HERE).await.unwrap();
    assert_eq!(update_around(&cluster, id, ClusterChange::Remove(id)).await, Err(ClusterError::NotFound));
    assert_eq!(cluster.member(id), MemberInfo { peer_urls: vec![HERE.into()], removed: true, ..MemberInfo::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_meanwhile_is_taken() {
    let cluster = Cluster::start().await;
    let id = cluster.add(HERE).await.unwrap();
    let between = ClusterChange::Add { peer_urls: vec![THERE.into()] };
    assert_eq!(update_around(&cluster, id, between).await, Err(ClusterError::Exists));
    assert_eq!(cluster.member(id).peer_urls, [HERE]);
}
