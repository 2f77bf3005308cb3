//! etcd's v3 API over gRPC: what `etcdctl`, the client libraries and the original kube-apiserver speak.
//!
//! Modules, in reading order:
//! - `shards`: the threads that connections are spread over; `connection`: one client's HTTP/2 connection, `stream`: what of it leaves together; `method`: which call a path is;
//! - `grpc`: messages in frames, and how a call ends; `status`: what etcd says when something is refused;
//! - `kv`, `txn`, `watch`, `lease`, `cluster`, `maintenance`: the services;
//! - `messages`: what goes over the wire.
//!
//! Invariants:
//! - an answer says what etcd would say, down to the code and the text of an error;
//! - a call that another one has to wait for does not wait for a long read: those have tasks of their own;
//! - a client that does not read its watches makes the store hold no more than a bounded number of responses.

mod cluster;
mod connection;
mod grpc;
mod kv;
mod lease;
mod maintenance;
mod messages;
mod method;
mod shards;
mod status;
mod stream;
mod txn;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch as signal},
};
use tokio_rustls::TlsAcceptor;

pub use self::cluster::{Alone, Cluster, ClusterChange, ClusterError, Doing};
use self::{
    messages::ResponseHeader,
    shards::{Guest, Shards},
};
use crate::{Place, Revision, Store};

/// The version of etcd whose API this is. Clients decide by it what they may ask for.
const VERSION: &str = "3.6.5";

/// The version of the form in which etcd of that version keeps its data.
fn storage_version() -> String {
    format!("{}.0", VERSION.rsplit_once('.').map_or(VERSION, |(minor, _)| minor))
}

/// A client that has not finished its handshake by then is not let in.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// What is under way at the end may take this long yet.
const GRACE: Duration = Duration::from_secs(2);
/// After an error of `accept`, which is the process having no file descriptors left, nobody is let in for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A connection is two tasks and some buffers; more clients than any cluster has.
const MAX_CONNECTIONS: usize = 10_000;

/// How clients are let in.
#[derive(Clone)]
pub struct Tls {
    /// Its protocol must be `h2`: gRPC's clients refuse a server that has not chosen that in the handshake.
    pub config: Arc<rustls::ServerConfig>,
    /// Decides by a client's certificate, which `config` has verified.
    pub admits: fn(&[u8]) -> bool,
}

/// Serves the API of `store` to whoever connects to `listener`, until `stop` resolves. With `tls`, which is asked anew for
/// each connection, every client speaks TLS; without it, anyone who can connect may do anything. Messages of other members
/// come in by `wire`, if there are any.
pub async fn serve(
    (store, cluster, wire): (Store, Arc<dyn Cluster>, Option<Place>),
    listener: TcpListener,
    tls: impl Fn() -> Option<Tls>,
    stop: impl Future<Output = ()>,
) {
    let api = Api { store, cluster, runtime: Handle::current() };
    let (stopping, stopped) = signal::channel(false);
    let mut shards = match Shards::start(&api, &stopped, wire) {
        Ok(shards) => shards,
        Err(error) => return tracing::error!(%error, "the etcd API is not served"),
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => shards.take(Guest { stream, tls: tls(), permit }),
            Err(error) => {
                tracing::warn!(%error, "a connection to the etcd API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Nobody listening is as good as everybody having heard.
    let _ = stopping.send(true);
    let _ = tokio::time::timeout(GRACE * 2, shards.end()).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(std::net::TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream.into_std()?, permit))
}

async fn connect(api: Arc<Api>, stream: TcpStream, tls: Option<Tls>, stopped: signal::Receiver<bool>) {
    // Answers are small, and someone waits for each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection to the etcd API was gone at once");
        return;
    }
    let served = match tls {
        None => connection::serve(api, stream, stopped).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_WAIT, TlsAcceptor::from(tls.config).accept(stream)).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                if !certificate.is_some_and(|der| (tls.admits)(der)) {
                    return tracing::warn!(
                        "a client whose certificate is no administrator's was not let into the etcd API"
                    );
                }
                connection::serve(api, stream, stopped).await
            }
            Ok(Err(error)) => return tracing::info!(%error, "a client of the etcd API was not let in"),
            Err(_) => return tracing::info!("a client of the etcd API did not finish its handshake"),
        },
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the etcd API broke");
    }
}

/// What every call has at hand.
#[derive(Clone)]
struct Api {
    store: Store,
    cluster: Arc<dyn Cluster>,
    /// For work that others must not wait for.
    runtime: Handle,
}

/// All the members of one group answer the same number, and no client compares it with another group's.
const CLUSTER_ID: u64 = 0x6d69_6e69_6b38_7301;

impl Api {
    fn header(&self, revision: Revision) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: CLUSTER_ID,
            member_id: self.store.member_id(),
            revision: revision as i64,
            raft_term: self.store.term(),
        })
    }

    /// The header of an answer that belongs to no revision in particular.
    fn header_now(&self) -> Option<ResponseHeader> {
        self.header(self.store.revision())
    }
}

#[cfg(test)]
mod tests;
