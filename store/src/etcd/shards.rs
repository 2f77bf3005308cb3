//! Threads of one runtime each, that connections are spread over.
//!
//! A put is so little work that waking another thread for it costs more than it does: a connection stays where it is, and
//! everything of it happens there, down to the log. What takes long is done elsewhere, by [`super::Api::runtime`].

use std::{io, sync::Arc, thread};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch as signal},
    task::JoinSet,
};

use super::{Api, Tls, connect};

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
    ended: oneshot::Receiver<()>,
}

impl Shards {
    pub fn start(api: &Api, stopped: &signal::Receiver<bool>) -> io::Result<Shards> {
        let count = (thread::available_parallelism().map_or(1, usize::from) / SHARE).clamp(1, MOST);
        let shards = (0..count).map(|_| start(api.clone(), stopped.clone())).collect::<io::Result<_>>()?;
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
            let _ = ended.await;
        }
    }
}

fn start(api: Api, stopped: signal::Receiver<bool>) -> io::Result<Shard> {
    let (guests, coming) = mpsc::unbounded_channel();
    let (done, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("store-etcd".to_owned()).spawn(move || {
        runtime.block_on(serve(api, stopped, coming));
        // Whoever waited for it may have given up.
        let _ = done.send(());
    })?;
    Ok(Shard { guests, ended })
}

async fn serve(api: Api, stopped: signal::Receiver<bool>, mut coming: mpsc::UnboundedReceiver<Guest>) {
    let mut connections = JoinSet::new();
    let (store, work) = api.store.on_this_thread();
    let api = Arc::new(Api { store, ..api });
    // Its turn comes after those connections that there is something to read of already: they share a sync of the log.
    let work = tokio::spawn(work);
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
    work.abort();
}
