//! What other servers send.

use std::{cmp::Ordering, str::FromStr, time::Duration};

use api::status::{Reason, Status};
use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::{GENERATION, MEMBER, TO, URL};
use crate::{App, members::REMOVED, present};

/// One message; larger ones are none of ours. The largest write, alone in an append, has room several times over.
const MAX_MESSAGE: usize = 64 << 20;
/// A snapshot; more than a server's memory should hold of objects.
const MAX_SNAPSHOT: usize = 4 << 30;
/// Between two pieces of a snapshot; its sender gives a connection up after two silent seconds.
const SNAPSHOT_SILENCE: Duration = Duration::from_secs(10);
/// How long messages are still taken in by a server that stops: what it has begun it can finish.
const GRACE: Duration = Duration::from_millis(500);

/// Who sends.
enum Sender {
    Member(u64),
    /// One of an earlier life of the cluster, from before a restore or a recovery.
    Superseded,
}

fn sender(app: &App, headers: &HeaderMap) -> Result<Sender, Status> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(member), Some(url)) = (text(&MEMBER), text(&URL)) else {
        return Err(Status::bad_request("only another server sends this, and says who it is"));
    };
    let id = u64::from_str_radix(member, 16).map_err(|_| Status::bad_request(format!("{member:?} is no server")))?;
    if http::Uri::from_str(url).ok().and_then(|url| url.port_u16()).is_none() {
        return Err(Status::bad_request(format!("{url:?} is no server's address")));
    }
    let snapshot = app.store.raw().snapshot();
    let generation = text(&GENERATION).and_then(|text| text.parse::<u64>().ok());
    // Whatever its number: the same may have been given again in another life. Who knows of no member is of none yet, be it
    // the sender or this server.
    let known = snapshot.members();
    match generation.map(|theirs| theirs.cmp(&snapshot.generation())) {
        Some(Ordering::Less) => return Ok(Sender::Superseded),
        Some(Ordering::Greater) if !known.is_empty() => {
            return Err(Status::new(
                Reason::Conflict,
                "this server is of an earlier life of the cluster, and joins it anew",
            ));
        }
        Some(Ordering::Equal | Ordering::Greater) | None => {}
    }
    if known.get(&id).is_some_and(|info| info.removed) {
        return Err(Status::gone(REMOVED));
    }
    // Last: whoever has to join anew, or is removed, is told so whomever they look for.
    let ours = format!("{:016x}", app.store.raw().status().member_id);
    if text(&TO).is_some_and(|to| to != ours) {
        return Err(Status::new(Reason::Conflict, "another server of the cluster is at its address"));
    }
    app.peers.hear(id, url);
    Ok(Sender::Member(id))
}

/// For the sender to join this life of the cluster as if it were new.
fn superseded() -> Response<Body> {
    let mut response = present::text("the cluster has been restored or recovered without this server");
    *response.status_mut() = StatusCode::PRECONDITION_FAILED;
    response
}

/// Takes in messages until the sender has no more or is removed, or this server stops.
pub async fn receive(app: &App, request: Request<Body>) -> Result<Response<Body>, Status> {
    let Sender::Member(id) = sender(app, request.headers())? else { return Ok(superseded()) };
    tracing::debug!(member = format!("{id:016x}"), "another server is connected");
    let mut body = request.into_body();
    let mut stop = app.stop.clone();
    let mut received = BytesMut::new();
    let stopped = async {
        let _ = stop.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(GRACE).await;
    };
    let mut removed = app.peers.removed.subscribe();
    let removed = async { drop(removed.wait_for(|removed| removed.contains(&id)).await) };
    tokio::pin!(stopped, removed);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut stopped => break,
            () = &mut removed => return Err(Status::gone(REMOVED)),
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Status::bad_request(format!("the messages broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        received.extend_from_slice(&data);
        while let Some(message) = next(&mut received)? {
            app.wire.store.receive(id, &message).map_err(|error| Status::bad_request(error.to_string()))?;
        }
    }
    Ok(present::text(""))
}

/// The next whole message of `received`.
fn next(received: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some(length) = received.first_chunk() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(Status::request_entity_too_large(MAX_MESSAGE));
    }
    if received.len() < 4 + length {
        received.reserve(4 + length - received.len());
        return Ok(None);
    }
    received.advance(4);
    Ok(Some(received.split_to(length).freeze()))
}

/// Takes in a snapshot.
pub async fn receive_snapshot(app: &App, request: Request<Body>) -> Result<Response<Body>, Status> {
    let Sender::Member(id) = sender(app, request.headers())? else { return Ok(superseded()) };
    let Ok(_turn) = app.peers.receiving.try_lock() else {
        return Err(Status::new(Reason::Conflict, "another snapshot is being received"));
    };
    let mut body = request.into_body();
    let mut received = BytesMut::new();
    // The next one waits for this one's end, so a sender that is gone without a word must not hold it up.
    let late = |_| Status::timeout("the rest of the snapshot did not come", 1);
    while let Some(frame) = timeout(SNAPSHOT_SILENCE, body.frame()).await.map_err(late)? {
        let frame = frame.map_err(|error| Status::bad_request(format!("the snapshot broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > MAX_SNAPSHOT {
            return Err(Status::request_entity_too_large(MAX_SNAPSHOT));
        }
        received.extend_from_slice(&data);
    }
    tracing::info!(member = format!("{id:016x}"), bytes = received.len(), "received a snapshot from another server");
    app.store.raw().receive_snapshot(id, received.freeze()).map_err(|error| Status::bad_request(error.to_string()))?;
    Ok(present::text(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_any_pieces() {
        let mut stream = Vec::new();
        for message in [&b"one"[..], b"", b"three"] {
            stream.extend_from_slice(&(message.len() as u32).to_le_bytes());
            stream.extend_from_slice(message);
        }
        for size in 1..stream.len() {
            let (mut received, mut messages) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(size) {
                received.extend_from_slice(piece);
                while let Some(message) = next(&mut received).expect("good messages") {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"one"[..], b"", b"three"], "pieces of {size}");
            assert!(received.is_empty());
        }
        assert!(next(&mut BytesMut::from(&u32::MAX.to_le_bytes()[..])).is_err());
    }
}
