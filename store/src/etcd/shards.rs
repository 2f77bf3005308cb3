//! Threads that connections are spread over. A connection stays where it is, and everything of it happens there, down to the
//! log ([`Place`] says why). What takes long is done elsewhere, by [`super::Api::runtime`].

use std::{io, sync::Arc, thread};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, watch as signal},
    task::JoinSet,
};

use super::{Api, Tls, connect};
use crate::Place;

/// Half of the processors at most: the other half is for what else the server does.
const SHARE: usize = 2;
/// Some hundred thousand puts a second each: more than any disk's log takes.
const MOST: usize = 4;

/// A client that has come.
pub struct Guest {
    pub stream: std::net::TcpStream,
    pub tls: Option<Tls>,
    /// Its place among all that may be there.
    pub permit: OwnedSemaphorePermit,
}

pub struct Shards {
    shards: Vec<Shard>,
    next: usize,
}

struct Shard {
    guests: mpsc::UnboundedSender<Guest>,
    /// Closed once everything of it has ended.
    ended: signal::Receiver<()>,
}

impl Shards {
    /// Where there is a wire to other members, the first of them is there: what its clients put goes out without waking
    /// another thread, and so does the answer.
    pub fn start(api: &Api, stopped: &signal::Receiver<bool>, mut wire: Option<Place>) -> io::Result<Shards> {
        let count = (thread::available_parallelism().map_or(1, usize::from) / SHARE).clamp(1, MOST);
        let mut shards = Vec::new();
        for _ in 0..count {
            let (guests, coming) = mpsc::unbounded_channel();
            let (done, ended) = signal::channel(());
            let place = match wire.take() {
                Some(place) => place,
                None => Place::start(&api.store, "store-etcd", gone(ended.clone()))?,
            };
            let api = Api { store: place.store, ..api.clone() };
            place.runtime.spawn(serve(Arc::new(api), stopped.clone(), coming, done));
            shards.push(Shard { guests, ended });
        }
        Ok(Shards { shards, next: 0 })
    }

    /// Each gets the next one in turn.
    pub fn take(&mut self, guest: Guest) {
        self.next = (self.next + 1) % self.shards.len();
        // One that has ended by a panic lets its guests go; they come back to another one.
        let _ = self.shards[self.next].guests.send(guest);
    }

    /// Resolves when all connections have ended.
    pub async fn end(self) {
        for Shard { guests, ended } in self.shards {
            drop(guests);
            gone(ended).await;
        }
    }
}

async fn gone(mut sender: signal::Receiver<()>) {
    while sender.changed().await.is_ok() {}
}

async fn serve(
    api: Arc<Api>,
    stopped: signal::Receiver<bool>,
    mut coming: mpsc::UnboundedReceiver<Guest>,
    _serving: signal::Sender<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            guest = coming.recv() => {
                let Some(Guest { stream, tls, permit }) = guest else { break };
                let (api, stopped) = (api.clone(), stopped.clone());
                connections.spawn(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => connect(api, stream, tls, stopped).await,
                        Err(error) => tracing::warn!(%error, "a connection to the etcd API is lost"),
                    }
                    drop(permit);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}
