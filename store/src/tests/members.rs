//! Three voters over a network in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use ::raft::eraftpb::Message;
use futures_util::future::select_all;

use super::{bytes, contents, in_time, put_into};
use crate::{
    Error, Store,
    disk::memory::MemoryDisk,
    mvcc::Limits,
    raft::{Input, Parts, Queue, Sizes, Transport},
    wire::OutgoingSnapshot,
};

/// A leader that is to be replaced by another one, and is not, leads on after this.
const GIVEN_UP: Duration = Duration::from_millis(200);

#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    inboxes: BTreeMap<u64, Arc<Queue<Input>>>,
    cut: BTreeSet<u64>,
}

struct Plug {
    network: Network,
    from: u64,
}

impl Transport for Plug {
    fn send(&mut self, message: Message) {
        let wires = self.network.0.lock().unwrap();
        if wires.cut.contains(&self.from) || wires.cut.contains(&message.to) {
            return;
        }
        if let Some(inbox) = wires.inboxes.get(&message.to) {
            inbox.push(Input::Message(Box::new(message)));
        }
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        self.send(snapshot.into_message());
    }
}

impl Network {
    async fn start(&self, id: u64, disk: &MemoryDisk) -> Store {
        let limits = Limits { revisions: 50, age_ms: u64::MAX / 8, bytes: 1 << 20 };
        let store = Store::open_with(Parts {
            voters: vec![1, 2, 3],
            transport: Box::new(Plug { network: self.clone(), from: id }),
            sizes: Sizes { segment: 64 << 10, cut_after: 32 << 10, tail: 6 << 10 },
            ..Parts::on_disk(id, limits, Arc::new(disk.clone()))
        })
        .await
        .unwrap();
        self.0.lock().unwrap().inboxes.insert(id, store.inbox());
        store
    }

    pub fn cut(&self, id: u64) {
        self.0.lock().unwrap().cut.insert(id);
    }

    pub fn heal(&self) {
        self.0.lock().unwrap().cut.clear();
    }
}

pub struct Group {
    pub network: Network,
    disks: BTreeMap<u64, MemoryDisk>,
    pub stores: BTreeMap<u64, Store>,
}

impl Group {
    pub async fn start() -> Group {
        let network = Network::default();
        let disks: BTreeMap<u64, MemoryDisk> = (1..=3).map(|id| (id, MemoryDisk::default())).collect();
        let mut stores = BTreeMap::new();
        for (&id, disk) in &disks {
            stores.insert(id, network.start(id, disk).await);
        }
        Group { network, disks, stores }
    }

    pub async fn stop(&self) {
        for store in self.stores.values() {
            store.shutdown().await.unwrap();
        }
    }

    pub async fn restart(&mut self, id: u64) {
        self.stores[&id].shutdown().await.unwrap();
        // Nothing is lost by a power cut on the way either.
        let disk = self.disks[&id].after_power_cut(id);
        self.stores.insert(id, self.network.start(id, &disk).await);
        self.disks.insert(id, disk);
    }

    /// Puts through any of `ids`, again and again until it is done: a write whose outcome is unknown is repeated.
    pub async fn put(&self, ids: &[u64], key: &str, value: &str) {
        let attempts = async {
            loop {
                let changed = self.next_change(ids);
                for id in ids {
                    match put_into(&self.stores[id], key, value).await {
                        Ok(_) => return,
                        Err(Error::Unavailable | Error::LeaderChanged { .. } | Error::Timeout { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                // A leader that could not be replaced stays, and nothing changes.
                let _ = tokio::time::timeout(GIVEN_UP, changed).await;
            }
        };
        in_time(&format!("a put through {ids:?}"), attempts).await;
    }

    pub async fn leader(&self, among: &[u64]) -> u64 {
        let found = async {
            loop {
                let changed = self.next_change(among);
                let mut leaders = among.iter().map(|id| self.stores[id].status().leader_id);
                let first = leaders.next().unwrap();
                if first != 0 && among.contains(&first) && leaders.all(|leader| leader == first) {
                    return first;
                }
                changed.await;
            }
        };
        in_time("a leader", found).await
    }

    /// The next change, from now on, of what one of `ids` knows of the group.
    fn next_change(&self, ids: &[u64]) -> impl Future<Output = ()> + use<> {
        let groups: Vec<_> = ids.iter().map(|id| self.stores[id].group()).collect();
        let changes = groups.into_iter().map(|mut group| Box::pin(async move { group.changed().await.is_ok() }));
        let changed = select_all(changes);
        async { drop(changed.await) }
    }

    pub async fn all_equal(&self) {
        let newest = self.stores.values().map(|store| store.snapshot().revision()).max().unwrap();
        for store in self.stores.values() {
            let caught_up = async {
                loop {
                    let mut watcher = store.watch(bytes(""), bytes(""), 0).unwrap();
                    // What is sent as a snapshot ends the watcher.
                    while store.snapshot().revision() < newest && watcher.next().await.is_ok() {}
                    if store.snapshot().revision() >= newest {
                        return;
                    }
                }
            };
            in_time("a member to have what another one has", caught_up).await;
        }
        let states: Vec<_> = self.stores.values().map(|store| (store.snapshot().revision(), contents(store))).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "members differ: {states:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_elect_replicate_and_lose_their_leader() {
    let mut group = Group::start().await;
    let leader = group.leader(&[1, 2, 3]).await;
    for id in 1..=3 {
        // A follower passes a write on; its own reads see it after a barrier.
        group.put(&[id], &format!("through-{id}"), "1").await;
        let store = &group.stores[&id];
        in_time("a barrier", store.read_barrier()).await.unwrap();
        assert!(store.snapshot().get(format!("through-{id}").as_bytes()).is_some());
    }
    group.all_equal().await;

    // The leader is cut off: it can promise nothing any more, and the others go on without it.
    group.network.cut(leader);
    let others: Vec<u64> = (1..=3).filter(|&id| id != leader).collect();
    let lonely = group.stores[&leader].clone();
    let stuck = tokio::spawn(async move { (put_into(&lonely, "lost", "1").await, lonely.read_barrier().await) });
    let next = group.leader(&others).await;
    assert_ne!(next, leader);
    for n in 0..200 {
        group.put(&others, &format!("without-{n}"), &"x".repeat(200)).await;
    }
    let (write, read) = in_time("the old leader's answer", stuck).await.unwrap();
    assert!(
        matches!(write, Err(Error::LeaderChanged { .. } | Error::Timeout { .. } | Error::Unavailable)),
        "{write:?}"
    );
    assert!(read.is_err(), "a member without a majority cannot know what is newest");

    // It comes back, far behind: it is sent a snapshot, forgets what it could not commit, and can be restarted.
    let watched = group.stores[&leader].watch(crate::prefix_end(b"\xff"), crate::prefix_end(b"\xff"), 2);
    group.network.heal();
    group.all_equal().await;
    assert!(group.stores[&leader].snapshot().get(b"lost").is_none());
    drop(watched);
    for round in 0..3 {
        group.restart(leader).await;
        group.put(&[leader], &format!("round-{round}"), "1").await;
        group.all_equal().await;
    }
    assert!(group.stores[&leader].snapshot().get(b"round-2").is_some());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_restarts_has_everything() {
    let mut group = Group::start().await;
    for n in 0..100 {
        group.put(&[1, 2, 3], &format!("{n}"), "v").await;
    }
    for id in 1..=3 {
        group.restart(id).await;
    }
    group.put(&[1, 2, 3], "after", "v").await;
    group.all_equal().await;
    assert_eq!(group.stores[&2].snapshot().len(), 101);
    group.stop().await;
}
