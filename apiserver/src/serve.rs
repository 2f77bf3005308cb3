//! From a listening socket to requests: TLS, HTTP/1.1 and HTTP/2, who the peer is by its certificate, and a stop that
//! lets running requests finish.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use api::status::Status;
use axum::body::Body;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::{
    App, Error, Tls,
    authenticate::{Identity, MASTERS, Peer},
    clock,
    gather::Gather,
    paths, peers, pipeline, present,
};

/// Open connections at once. A thousand nodes and two thousand watchers fit three times over; a connection costs about
/// 50 KiB of buffers.
const MAX_CONNECTIONS: usize = 10_000;
/// A client that has not finished its handshake by then is gone or hostile.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of one HTTP/1.1 request to the end of the next one's headers, so also how long an idle connection is
/// kept: longer than clients keep theirs (90 s), so that a request does not race with our closing.
const HEADER_TIMEOUT: Duration = Duration::from_secs(100);
/// HTTP/2 streams of one connection: client libraries run all their watches over one.
const MAX_STREAMS: u32 = 1_000;
/// HTTP/2 pings find clients that vanished without closing.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// In seconds: a connection whose other end is gone ends within a minute.
const KEEP_ALIVE_IDLE: u32 = 30;
const KEEP_ALIVE_INTERVAL: u32 = 10;
const KEEP_ALIVE_COUNT: u32 = 3;
/// How long a stop waits for running requests.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of file descriptors, usually, and only the end of a connection helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves until `stop` turns true, then drains. `tls` changes when certificates are renewed.
pub async fn run(listener: TcpListener, tls: watch::Receiver<Tls>, app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = Arc::new(GracefulShutdown::new());
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            _ = stop.wait_for(|stopping| *stopping) => break,
        };
        let Some((stream, address, permit)) = accepted else { continue };
        let guest = Guest { address, tls: tls.borrow().server.clone(), graceful: graceful.watcher(), _permit: permit };
        tokio::spawn(guest.connect(stream, app.clone()));
    }
    drop(listener);
    if let Some(graceful) = Arc::into_inner(graceful)
        && timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err()
    {
        tracing::info!("requests still running after {} s are cut off", DRAIN_TIMEOUT.as_secs());
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, permit)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEP_ALIVE_COUNT)
}

/// A client that has come.
struct Guest {
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    graceful: Watcher,
    /// Its place among all that may be there.
    _permit: OwnedSemaphorePermit,
}

impl Guest {
    async fn connect(self, stream: TcpStream, app: Arc<App>) {
        // Small answers must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        // A client whose machine is gone says nothing: neither does one that only waits, so the kernel asks.
        let _ = keep_alive(&stream);
        let (address, late) = (self.address, clock::instant() + HANDSHAKE_TIMEOUT);
        let hello = match timeout_at(late, LazyConfigAcceptor::new(Acceptor::default(), stream)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake timed out"),
        };
        let asks = hello.client_hello().alpn();
        if !asks.is_some_and(|mut protocols| protocols.any(|protocol| protocol == peers::PROTOCOL)) {
            return self.serve(hello, late, app).await;
        }
        // A socket belongs to the runtime that it was made in, and wakes only that one's thread.
        let StartHandshake { accepted, io, .. } = hello;
        let moved = io.into_std();
        app.wire.runtime.clone().spawn(async move {
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => self.serve(StartHandshake::from_parts(accepted, stream), late, app).await,
                Err(error) => tracing::warn!(%error, "a connection of another server is lost"),
            }
        });
    }

    async fn serve(self, hello: StartHandshake<TcpStream>, late: Instant, app: Arc<App>) {
        let address = self.address;
        let stream = match timeout_at(late, hello.into_stream(self.tls)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake timed out"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = Peer::Tls(certificate.and_then(|der| Identity::from_certificate(der)).map(Arc::new));
        let is_wire = stream.get_ref().1.alpn_protocol() == Some(peers::PROTOCOL);
        if is_wire && !matches!(&peer, Peer::Tls(Some(identity)) if identity.in_group(MASTERS)) {
            return tracing::debug!(%address, "only another server may send messages");
        }

        let service = service_fn(move |request: Request<Incoming>| {
            let (app, peer) = (app.clone(), peer.clone());
            async move {
                Ok::<_, Infallible>(match is_wire && request.uri().path() != paths::RAFT {
                    true => present::failure(&Status::bad_request("only messages between servers come this way")),
                    false => pipeline::handle(app, peer, request.map(Body::new)).await,
                })
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(Gather::new(stream)), service).into_owned();
        if let Err(error) = self.graceful.watch(connection).await {
            tracing::debug!(%address, error = &*error, "connection ended");
        }
    }
}
