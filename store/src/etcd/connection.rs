//! One client's connection. Short calls are carried out in the connection's own task, so that all the answers that come
//! of one sync of the log leave in one write; long ones have tasks of their own, which end with the connection.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{
    Ping, RecvStream,
    server::{Connection, SendResponse},
};
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch as signal,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Api, GRACE, HANDSHAKE_WAIT,
    grpc::{Call, Incoming},
    method::{self, Method},
    status::Status,
    stream::Stream,
};

/// What a client may send of one call, and of all of them, before it has to wait for the server to read on.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a call's answer may hold of memory before it waits for the client.
const SEND_BUFFER: usize = 1 << 20;
/// Calls under way on one connection; a client waits with further ones.
const MAX_STREAMS: u32 = 10_000;
/// A client that has been silent is asked whether it is there, and is given up where it does not say so by the next time.
const PING_EVERY: Duration = Duration::from_secs(30);
/// As long as a pong waits for an answer under way that it can leave with.
const HELD: Duration = Duration::from_millis(5);

pub async fn serve<T>(api: Arc<Api>, stream: T, mut stopped: signal::Receiver<bool>) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS);
    let stream = Stream::new(stream);
    let handshake = builder.handshake::<_, Bytes>(stream.clone());
    let Ok(connection) = tokio::time::timeout(HANDSHAKE_WAIT, handshake).await else {
        return Ok(());
    };
    let mut connection = connection?;
    let mut beside = pin!(beside(connection.ping_pong(), &mut stopped));
    let mut short = FuturesUnordered::new();
    let mut long = JoinSet::new();
    let (mut timer, mut timed) = (pin!(sleep(Duration::ZERO)), false);
    let ended = poll_fn(|context| {
        loop {
            // Everything that has come first, and then the answers: to accept is also to send what has been written, so
            // that the answers of one round leave in one go.
            while let Poll::Ready(accepted) = connection.poll_accept(context) {
                let (request, respond) = match accepted {
                    Some(Ok(accepted)) => accepted,
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(End::Closed)),
                };
                let Some((method, call)) = route(&api, request, respond) else { continue };
                let answer = method::answer(api.clone(), method, call);
                if method.is_long() {
                    long.spawn(answer);
                } else {
                    short.push(answer);
                }
            }
            let mut answered = false;
            while let Poll::Ready(Some(())) = short.poll_next_unpin(context) {
                answered = true;
            }
            if !answered {
                break;
            }
        }
        while let Poll::Ready(Some(_)) = long.poll_join_next(context) {}
        if stream.holds() {
            // One timer for many: some pongs go before their time, and none is held for longer.
            if !std::mem::replace(&mut timed, true) {
                timer.set(sleep(HELD));
            }
            let expired = timer.as_mut().poll(context).is_ready();
            timed = !expired;
            if expired || short.is_empty() {
                // A broken stream shows where h2 reads it.
                let _ = stream.release(context);
            }
        }
        beside.as_mut().poll(context).map(Ok)
    })
    .await?;
    match ended {
        End::Closed | End::Silent => Ok(()),
        End::Stopped => {
            stream.hold_nothing();
            wind_up(connection, short, long).await
        }
    }
}

/// Why a connection is served no longer.
enum End {
    /// The client has closed it.
    Closed,
    /// The client does not answer any more.
    Silent,
    /// The server stops.
    Stopped,
}

/// What goes on beside the calls.
async fn beside(mut ping: Option<h2::PingPong>, stopped: &mut signal::Receiver<bool>) -> End {
    let mut ping_time = interval(PING_EVERY);
    ping_time.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once.
    ping_time.tick().await;
    let mut unanswered = false;
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return End::Stopped,
            _ = ping_time.tick() => {
                let Some(ping) = &mut ping else { continue };
                if unanswered {
                    return End::Silent;
                }
                unanswered = ping.send_ping(Ping::opaque()).is_ok();
            }
            () = pong(&mut ping), if unanswered => unanswered = false,
        }
    }
}

async fn pong(ping: &mut Option<h2::PingPong>) {
    match ping {
        Some(ping) => drop(poll_fn(|context| ping.poll_pong(context)).await),
        None => std::future::pending().await,
    }
}

/// Lets calls come to their end, and begins no more.
async fn wind_up<T>(
    mut connection: Connection<T, Bytes>,
    mut short: FuturesUnordered<impl Future<Output = ()>>,
    mut long: JoinSet<()>,
) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // Streams without an end would have none now either; clients begin them anew elsewhere.
    long.abort_all();
    connection.graceful_shutdown();
    let ended = async {
        loop {
            tokio::select! {
                biased;
                Some(()) = short.next() => {}
                accepted = connection.accept() => match accepted {
                    None => return Ok(()),
                    Some(accepted) => Call::of(accepted?).refuse(&Status::STOPPED),
                },
            }
        }
    };
    tokio::time::timeout(GRACE, ended).await.unwrap_or(Ok(()))
}

impl Call {
    fn of((request, respond): (Request<RecvStream>, SendResponse<Bytes>)) -> Call {
        Call { incoming: Incoming::new(request.into_body()), respond }
    }
}

/// Which call it is; one that cannot be answered is refused at once.
fn route(api: &Api, request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Option<(Method, Call)> {
    // Some clients would rather go elsewhere than wait for a leader.
    let leaderless = api.store.leader() == 0 && request.headers().get("hasleader").is_some_and(|asks| asks == "true");
    let method = if leaderless { Err(Status::NO_LEADER) } else { Method::of(request.uri().path()) };
    let call = Call::of((request, respond));
    match method {
        Ok(method) => Some((method, call)),
        Err(status) => {
            call.refuse(&status);
            None
        }
    }
}
