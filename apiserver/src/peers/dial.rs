//! Connections to other servers.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use api::status::{Reason, Status};
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use store::OutgoingSnapshot;
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{GENERATION, MEMBER, PROTOCOL, TO, URL};
use crate::{App, clock, clock::Reminder, paths};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that acknowledges nothing for this long is cut off, and dialled anew: after a partition the kernel's own
/// retries may be half a minute apart.
const SILENCE: Duration = Duration::from_secs(2);
/// Between two attempts. An election takes ten times as long.
const RETRY: Duration = Duration::from_millis(100);
/// A server that cannot be reached for this long is more than one that restarts, and is named now and then.
const UNREACHED: Duration = Duration::from_secs(10);
const REMIND: Duration = Duration::from_secs(300);
/// To a question that the other server may have to ask the group about; longer than a change of members may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A snapshot of some gigabytes over a slow link. Until then nothing else is sent to that server.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Messages are put together into one piece up to about this size.
const PIECE: usize = 64 << 10;
/// Of an answer that is not a stream, as much is read.
const MAX_ANSWER: usize = 1 << 20;
/// Pieces of a snapshot between the thread that encodes it and the socket.
const PIECES: usize = 2;

/// A connection over which one request can be made.
struct Connection<B> {
    sender: SendRequest<B>,
    authority: String,
    /// The member that must be there; none for whoever is there.
    to: Option<u64>,
}

/// Connects to the server at `https://HOST:PORT`, whose certificate must be of this cluster.
async fn connect<B>(app: &App, url: &str) -> io::Result<Connection<B>>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let config = app.tls.borrow().client.clone();
    connect_with(config, url).await
}

async fn connect_with<B>(config: Arc<ClientConfig>, url: &str) -> io::Result<Connection<B>>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{url:?} is not of the form https://HOST:PORT"));
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(wrong()) };
    let host = host.trim_matches(['[', ']']).to_owned();
    let connect = async {
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &(SILENCE.as_millis() as u32))?;
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        TlsConnector::from(config).connect(name, stream).await
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    let stream = timeout(CONNECT_TIMEOUT, connect).await.map_err(late)??;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to another server ended");
        }
    });
    Ok(Connection { sender, authority: format!("{host}:{port}"), to: None })
}

impl<B> Connection<B>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    fn to(self, id: u64) -> Connection<B> {
        Connection { to: Some(id), ..self }
    }

    /// Makes the one request, in this server's name.
    async fn send(mut self, app: &App, (method, path): (Method, &str), body: B) -> io::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.authority.as_str())
            .header(MEMBER, format!("{:016x}", app.store.raw().status().member_id))
            .header(URL, app.url());
        if let Some(to) = self.to {
            request = request.header(TO, format!("{to:016x}"));
        }
        let snapshot = app.store.raw().snapshot();
        // Who has not been sent anything yet is of no life.
        if !snapshot.members().is_empty() {
            request = request.header(GENERATION, snapshot.generation());
        }
        let request = request.body(body).map_err(io::Error::other)?;
        self.sender.send_request(request).await.map_err(io::Error::other)
    }
}

/// One request with one answer, in this server's name: the answer's body, or what it was refused for.
pub async fn post(app: &App, url: &str, (method, path): (Method, &str), body: Bytes) -> Result<Bytes, Status> {
    let fail = |error: io::Error| Status::service_unavailable(format!("the server at {url}: {error}")).retry_after(1);
    let connection = connect(app, url).await.map_err(fail)?;
    // From here on it may do what it was asked, whatever becomes of its answer.
    let fail = |error: io::Error| {
        Status::new(Reason::Timeout, format!("the server at {url}: {error}; it may have done it all the same"))
    };
    let late = |_| fail(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
    let answer = timeout(ANSWER_TIMEOUT, connection.send(app, (method, path), Full::new(body)));
    let answer = answer.await.map_err(late)?.map_err(fail)?;
    let code = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    let body = timeout(ANSWER_TIMEOUT, body).await.map_err(late)?;
    let body = body.map_err(|error| fail(io::Error::other(error)))?.to_bytes();
    if code.is_success() { Ok(body) } else { Err(refusal(code, &body)) }
}

/// What another server refuses, as our own answer.
fn refusal(code: StatusCode, body: &[u8]) -> Status {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = said["message"].as_str().map_or_else(|| format!("the other server answered {code}"), str::to_owned);
    match code {
        StatusCode::GONE => Status::gone(message),
        StatusCode::BAD_REQUEST => Status::bad_request(message),
        StatusCode::NOT_FOUND => Status::new(Reason::NotFound, message),
        StatusCode::CONFLICT => Status::new(Reason::Conflict, message),
        StatusCode::SERVICE_UNAVAILABLE => Status::service_unavailable(message).retry_after(1),
        StatusCode::GATEWAY_TIMEOUT => Status::new(Reason::Timeout, message),
        _ => Status::internal(message),
    }
}

/// Messages on their way to one server.
pub struct Waiting {
    pub queue: mpsc::Receiver<Bytes>,
    /// How much of it there is.
    pub bytes: Arc<AtomicUsize>,
}

impl Waiting {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Poll::Ready(first) = self.queue.poll_recv(context) else { return Poll::Pending };
        let Some(first) = first else { return Poll::Ready(None) };
        let mut piece = BytesMut::with_capacity(4 + first.len());
        self.put(&mut piece, &first);
        while piece.len() < PIECE
            && let Ok(next) = self.queue.try_recv()
        {
            self.put(&mut piece, &next);
        }
        Poll::Ready(Some(piece.freeze()))
    }

    fn put(&self, piece: &mut BytesMut, message: &Bytes) {
        self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        piece.put_u32_le(message.len() as u32);
        piece.extend_from_slice(message);
    }

    /// What waits for a connection that is not there comes too late when it is.
    fn discard(&mut self) {
        while let Ok(message) = self.queue.try_recv() {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        }
    }
}

/// The body of a request that has no end. It gives its queue back when it is dropped.
struct Stream {
    waiting: Arc<Mutex<Waiting>>,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Only one connection at a time has it.
        let Ok(mut waiting) = self.waiting.try_lock() else { return Poll::Ready(None) };
        waiting.poll_piece(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Sends one server its messages, for as long as it belongs to the group.
pub async fn messages(app: Arc<App>, id: u64, mut urls: watch::Receiver<String>, waiting: Waiting) {
    let waiting = Arc::new(Mutex::new(waiting));
    let (mut told, mut reminder) = (String::new(), Reminder::default());
    // When it was last connected.
    let mut reached = clock::instant();
    loop {
        let url = urls.borrow_and_update().clone();
        waiting.lock().await.discard();
        let began = clock::instant();
        let ended = tokio::select! {
            ended = converse(&app, (id, &url), &waiting) => ended,
            moved = urls.changed() => if moved.is_ok() { continue } else { return },
        };
        // No attempt takes as long.
        if began + 2 * CONNECT_TIMEOUT < clock::instant() {
            reached = clock::instant();
        }
        match ended {
            Err(Ended::Removed(why)) => return app.store.raw().fail(why),
            Err(Ended::Superseded) => return drop(app.superseded.send_replace(Some(url))),
            Err(Ended::Broken(why)) if reached + UNREACHED < clock::instant() && reminder.is_due(REMIND) => {
                tracing::warn!(
                    member = format!("{id:016x}"),
                    url,
                    why,
                    "another server cannot be reached: if it runs, it needs the right --advertise-address and --bind"
                );
            }
            // The same complaint once, not ten times a second.
            Err(Ended::Broken(why)) if why != told => {
                tracing::info!(member = format!("{id:016x}"), url, why, "no connection to another server");
                told = why;
            }
            Err(Ended::Broken(_)) => {}
            Ok(()) => told.clear(),
        }
        tokio::time::sleep(RETRY).await;
    }
}

enum Ended {
    /// The group has removed this server.
    Removed(String),
    /// The group has begun another life without this server.
    Superseded,
    Broken(String),
}

async fn converse(app: &App, (id, url): (u64, &str), waiting: &Arc<Mutex<Waiting>>) -> Result<(), Ended> {
    let broken = |error: io::Error| Ended::Broken(error.to_string());
    let mut config = ClientConfig::clone(&app.tls.borrow().client);
    config.alpn_protocols.insert(0, PROTOCOL.to_vec());
    let connection = connect_with(Arc::new(config), url).await.map_err(broken)?;
    let body = Stream { waiting: waiting.clone() };
    let answer = connection.to(id).send(app, (Method::POST, paths::RAFT), body).await.map_err(broken)?;
    let code = answer.status();
    if code.is_success() {
        return Ok(());
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let status = refusal(code, &body.map(|body| body.to_bytes()).unwrap_or_default());
    Err(match code {
        StatusCode::GONE => Ended::Removed(status.message),
        StatusCode::PRECONDITION_FAILED => Ended::Superseded,
        _ => Ended::Broken(status.message),
    })
}

/// Sends one server the snapshots that it is to have, one after the other.
pub async fn snapshots(
    app: Arc<App>,
    id: u64,
    urls: watch::Receiver<String>,
    mut queue: mpsc::Receiver<OutgoingSnapshot>,
) {
    while let Some(snapshot) = queue.recv().await {
        let url = urls.borrow().clone();
        match send_snapshot(&app, id, &url, snapshot).await {
            Ok(()) => tracing::info!(url, "a snapshot was sent to another server"),
            Err(error) => tracing::info!(url, %error, "a snapshot could not be sent to another server"),
        }
    }
}

async fn send_snapshot(app: &App, id: u64, url: &str, snapshot: OutgoingSnapshot) -> io::Result<()> {
    let connection = connect(app, url).await?.to(id);
    let (pieces, body) = mpsc::channel(PIECES);
    let encoding = tokio::task::spawn_blocking(move || {
        // Ends early where nobody takes the pieces any more.
        let whole = snapshot.write(|piece| pieces.blocking_send(Ok(piece))).is_ok();
        (snapshot, whole)
    });
    let body = Body::new(Pieces(body));
    let body = body.map_err(|_| unreachable!("pieces do not fail")).boxed_unsync();
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    let answer = timeout(SNAPSHOT_TIMEOUT, connection.send(app, (Method::POST, paths::RAFT_SNAPSHOT), body)).await;
    let answer = answer.map_err(late).flatten();
    let (snapshot, whole) = encoding.await.map_err(io::Error::other)?;
    let code = answer?.status();
    if !whole || !code.is_success() {
        return Err(io::Error::other(format!("it was not taken: {code}")));
    }
    snapshot.delivered();
    Ok(())
}

/// The pieces of a snapshot as a body.
struct Pieces(mpsc::Receiver<Result<Bytes, Infallible>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
