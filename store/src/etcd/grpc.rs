//! gRPC on HTTP/2 streams: messages in frames of `[compressed u8][length u32][message]`, and how a call ends.

use std::future::{Future, poll_fn};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use prost::Message;

use super::status::{Code, Status};

/// The largest request etcd carries out.
pub const MAX_REQUEST: usize = 3 << 19;
/// What a message may have around it; a larger one is not even read.
const OVERHEAD: usize = 512 << 10;
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OK: HeaderValue = HeaderValue::from_static("0");

/// One call: what the client sends, and where the answer goes.
pub struct Call {
    pub incoming: Incoming,
    pub respond: SendResponse<Bytes>,
}

impl Call {
    pub fn refuse(mut self, status: &Status) {
        refuse(&mut self.respond, status);
    }

    /// Begins an answer of many messages.
    pub fn answer(mut self) -> Option<(Incoming, Outgoing)> {
        let stream = self.respond.send_response(head(), false).ok()?;
        Some((self.incoming, Outgoing { stream }))
    }
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert(CONTENT_TYPE, GRPC);
    head
}

/// An answer that is nothing but a status. A client that is gone does not hear it, and need not.
fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut head = head();
    put_status(head.headers_mut(), status);
    let _ = respond.send_response(head, true);
}

fn put_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(STATUS, HeaderValue::from(status.code as u16));
    if let Ok(text) = HeaderValue::from_bytes(&percent_encoded(&status.message)) {
        headers.insert(MESSAGE, text);
    }
}

/// As gRPC wants its messages: printable ASCII stands for itself, but for the percent sign.
fn percent_encoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte),
            _ => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    out
}

/// A call of one request and one answer.
pub async fn unary<Q, A, F>(mut call: Call, handle: impl FnOnce(Q) -> F)
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Status>>,
{
    let answer = match call.incoming.next().await {
        Ok(Some(request)) => handle(request).await,
        Ok(None) => Err(Status::CUT_SHORT),
        Err(status) => Err(status),
    };
    match answer {
        Err(status) => refuse(&mut call.respond, &status),
        // The client may be gone; there is nobody else to tell.
        Ok(answer) => drop(send(&mut call.respond, &answer)),
    }
}

fn send(respond: &mut SendResponse<Bytes>, answer: &impl Message) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(frame(answer), false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, OK);
    stream.send_trailers(trailers)
}

/// A message in its frame.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode_raw(&mut out);
    out.freeze()
}

/// The messages of a client, in order.
pub struct Incoming {
    stream: RecvStream,
    /// Received and not yet looked at.
    buffer: Bytes,
}

impl Incoming {
    pub fn new(stream: RecvStream) -> Incoming {
        Incoming { stream, buffer: Bytes::new() }
    }

    /// The next message; nothing once the client has ended its side.
    pub async fn next<Q: Message + Default>(&mut self) -> Result<Option<Q>, Status> {
        let Some(message) = self.next_bytes().await? else { return Ok(None) };
        // Keys and values share the memory of what was received.
        let decoded = Q::decode(message);
        decoded.map(Some).map_err(|error| Status { code: Code::Internal, message: error.to_string().into() })
    }

    async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.cut()? {
                return Ok(Some(message));
            }
            match self.stream.data().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::CUT_SHORT),
                Some(Err(error)) => return Err(Status { code: Code::Unavailable, message: error.to_string().into() }),
                Some(Ok(chunk)) => {
                    // An error means that the stream is at its end, which `data` says too.
                    let _ = self.stream.flow_control().release_capacity(chunk.len());
                    self.add(chunk);
                }
            }
        }
    }

    fn add(&mut self, chunk: Bytes) {
        if self.buffer.is_empty() {
            self.buffer = chunk;
            return;
        }
        // Nobody else has this memory after the first time, so that a message in many pieces is not copied for each.
        let mut joined = BytesMut::from(std::mem::take(&mut self.buffer));
        joined.extend_from_slice(&chunk);
        self.buffer = joined.freeze();
    }

    fn cut(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((&prefix, _)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Status::COMPRESSED);
        }
        const LIMIT: usize = MAX_REQUEST + OVERHEAD;
        if length > LIMIT {
            let message = format!("grpc: received message larger than max ({length} vs. {LIMIT})");
            return Err(Status { code: Code::ResourceExhausted, message: message.into() });
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        let message = self.buffer.split_to(PREFIX + length).slice(PREFIX..);
        Ok(Some(message))
    }
}

/// Where an answer of many messages goes.
pub struct Outgoing {
    stream: SendStream<Bytes>,
}

/// The client is gone.
#[derive(Debug)]
pub struct Gone;

impl Outgoing {
    /// Sends a frame once the client has room for it.
    pub async fn send(&mut self, mut frame: Bytes) -> Result<(), Gone> {
        while !frame.is_empty() {
            self.stream.reserve_capacity(frame.len());
            let room = poll_fn(|context| self.stream.poll_capacity(context)).await;
            let room = room.and_then(Result::ok).ok_or(Gone)?;
            let part = frame.split_to(room.min(frame.len()));
            self.stream.send_data(part, false).map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Resolves when the client has given up.
    pub async fn gone(&mut self) {
        // Whatever the reason.
        let _ = poll_fn(|context| self.stream.poll_reset(context)).await;
    }

    pub fn end(mut self, result: Result<(), Status>) {
        let mut trailers = HeaderMap::with_capacity(2);
        match result {
            Ok(()) => drop(trailers.insert(STATUS, OK)),
            Err(status) => put_status(&mut trailers, &status),
        }
        let _ = self.stream.send_trailers(trailers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_status_are_printable() {
        assert_eq!(percent_encoded("etcdserver: 100% ü\n"), b"etcdserver: 100%25 %C3%BC%0A");
    }
}
