//! The wire between servers: what one server's store has for another's goes over one request that has no end, from each
//! to each; a snapshot goes over a request of its own.
//!
//! `dial` makes the connections, `incoming` takes in what comes over those of others. Messages have a thread of their own.
//!
//! A server says in each such request who it is and where it can be reached. Whoever comes back at another address is
//! therefore known there as soon as it can reach anybody, also where no majority could write the address down.
//!
//! A server of an earlier life of the cluster, from before a restore or a recovery, is told so and has no say in this one.
//!
//! Invariant: what waits for one server is bounded in bytes; what is beyond that is dropped, as Raft allows.
//! Invariant: a message is sent once, over one connection, or lost.

mod dial;
mod incoming;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use store::{MEMBERS, MemberInfo, OutgoingSnapshot, Wire, prefix_end};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

pub use dial::post;
pub use incoming::{receive, receive_snapshot};

use crate::App;

/// What a server asks for in TLS when it dials for this, so that the connection is taken to the right thread at once.
pub const PROTOCOL: &[u8] = b"minik8s-wire";
/// Who sends, and where it can be reached.
const MEMBER: HeaderName = HeaderName::from_static("minik8s-member");
const URL: HeaderName = HeaderName::from_static("minik8s-url");
/// Whom it is for. Somebody else may be at that address.
const TO: HeaderName = HeaderName::from_static("minik8s-to");
/// Which life of the cluster the sender knows, if it knows any.
const GENERATION: HeaderName = HeaderName::from_static("minik8s-generation");

/// Whether another server asks, in its own name.
pub fn is_of_server(headers: &HeaderMap) -> bool {
    headers.contains_key(MEMBER)
}

/// Messages that may wait for one server: raft has no more than a few hundred on their way to it.
const QUEUE: usize = 1024;
/// And their bytes: several full appends. What comes beyond it would only come too late.
const QUEUE_BYTES: usize = 32 << 20;

/// The other servers, as the store's wire and as the connections behind it.
#[derive(Default)]
pub struct Peers {
    links: Mutex<HashMap<u64, Link>>,
    /// Where servers said that they are when they connected.
    heard: watch::Sender<BTreeMap<u64, String>>,
    /// Who has been removed from the group, and is listened to no longer.
    removed: watch::Sender<BTreeSet<u64>>,
    /// One snapshot is received at a time: each is in memory as a whole.
    receiving: tokio::sync::Mutex<()>,
}

/// The near end of what is sent to one server.
struct Link {
    messages: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    snapshots: mpsc::Sender<OutgoingSnapshot>,
    url: watch::Sender<String>,
    /// Ends with the link.
    _tasks: JoinSet<()>,
}

impl Wire for Peers {
    fn send(&self, to: u64, message: Bytes) {
        let links = self.links();
        let Some(link) = links.get(&to) else { return };
        let bytes = message.len();
        if link.waiting.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return;
        }
        link.waiting.fetch_add(bytes, Ordering::Relaxed);
        if link.messages.try_send(message).is_err() {
            link.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn send_snapshot(&self, to: u64, snapshot: OutgoingSnapshot) {
        if let Some(link) = self.links().get(&to) {
            // One that cannot be taken is dropped, which the store hears of.
            let _ = link.snapshots.try_send(snapshot);
        }
    }
}

impl Peers {
    fn links(&self) -> MutexGuard<'_, HashMap<u64, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all links.
    pub fn part(&self) {
        self.links().clear();
    }

    /// Notes where a server says that it is.
    fn hear(&self, id: u64, url: &str) {
        self.heard.send_if_modified(|heard| {
            let news = heard.get(&id).is_none_or(|known| known != url);
            if news {
                heard.insert(id, url.to_owned());
            }
            news
        });
    }

    /// Where servers are: as they said last, else as it is written down.
    pub fn addresses(&self, written: &BTreeMap<u64, MemberInfo>) -> BTreeMap<u64, String> {
        let known = written.iter().filter(|(_, info)| !info.removed);
        let mut urls: BTreeMap<u64, String> =
            known.filter_map(|(&id, info)| Some((id, info.peer_urls.first()?.clone()))).collect();
        let heard = self.heard.borrow().clone();
        urls.extend(heard.into_iter().filter(|(id, _)| written.get(id).is_none_or(|info| !info.removed)));
        urls
    }
}

/// Keeps a link to every other server, for as long as the server runs.
pub async fn run(app: Arc<App>) {
    let (mut group, mut heard) = (app.store.raw().group(), app.peers.heard.subscribe());
    loop {
        group.mark_unchanged();
        heard.mark_unchanged();
        // From the revision after the state that is looked at, so that nothing comes to lie in between.
        let snapshot = app.store.raw().snapshot();
        let from = snapshot.revision() + 1;
        let Ok(mut written) = app.store.raw().watch(Bytes::from_static(MEMBERS), prefix_end(MEMBERS), from) else {
            return;
        };
        let known = snapshot.members();
        drop(snapshot);
        let removed: BTreeSet<u64> = known.iter().filter(|(_, info)| info.removed).map(|(&id, _)| id).collect();
        app.peers.removed.send_if_modified(|told| std::mem::replace(told, removed.clone()) != removed);
        link(&app, &app.peers.addresses(&known), &known);
        tokio::select! {
            _ = group.changed() => {}
            _ = heard.changed() => {}
            event = written.next() => if let Err(store::WatchError::Closed) = event { return },
        }
    }
}

/// Makes the links that there should be, and ends others.
fn link(app: &Arc<App>, addresses: &BTreeMap<u64, String>, known: &BTreeMap<u64, MemberInfo>) {
    let group = app.store.raw().group().borrow().clone();
    let me = app.store.raw().status().member_id;
    let wanted: BTreeSet<u64> = addresses
        .keys()
        .copied()
        // Who has called may be a leader that this server, which is new, does not know of yet.
        .filter(|&id| id != me && (group.has(id) || !known.contains_key(&id)))
        .collect();
    let mut links = app.peers.links();
    links.retain(|id, _| wanted.contains(id));
    for id in wanted {
        let url = &addresses[&id];
        let link = links.entry(id).or_insert_with(|| open(app, id, url.clone()));
        link.url.send_if_modified(|current| {
            let moved = current != url;
            current.clone_from(url);
            moved
        });
    }
}

fn open(app: &Arc<App>, id: u64, url: String) -> Link {
    let (messages, queue) = mpsc::channel(QUEUE);
    // One under way and none behind it: the next one is newer anyhow.
    let (snapshots, outgoing) = mpsc::channel(1);
    let (url, urls) = watch::channel(url);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let outbox = dial::Waiting { queue, bytes: waiting.clone() };
    tasks.spawn_on(dial::messages(app.clone(), id, urls.clone(), outbox), &app.wire.runtime);
    tasks.spawn(dial::snapshots(app.clone(), id, urls, outgoing));
    Link { messages, waiting, snapshots, url, _tasks: tasks }
}
