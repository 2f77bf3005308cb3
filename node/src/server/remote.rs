//! A client of exec and attach, in the framing that it chose: WebSocket messages whose first byte names a channel, or the
//! streams of SPDY/3.1, which is what kubectl spoke until 1.29. What is said in them is the same.

use std::{io, time::Duration};

use axum::{
    extract::{
        FromRequestParts,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    flag, query,
    spdy::{Decoder, Encoder, Fin, Frame, Malformed, Refusal},
};

/// In the order of preference. v4 is v5 without the half-close of stdin.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// SPDY closes each stream for itself, so v5 has nothing to add to it.
const SPDY_PROTOCOL: &str = "v4.channel.k8s.io";
const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The largest message taken from a client, and the most read at once from one.
const MESSAGE_MAX: usize = 1 << 20;
const BLOCK: usize = 32 * 1024;
/// How long a client may take to open its streams.
const STREAMS: Duration = Duration::from_secs(30);
/// How long a client may take to answer the end of a conversation.
const GOODBYE: Duration = Duration::from_secs(5);

/// The numbers are those of the first bytes of WebSocket messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

const CHANNELS: [(Channel, &str); 5] = [
    (Channel::Stdin, "stdin"),
    (Channel::Stdout, "stdout"),
    (Channel::Stderr, "stderr"),
    (Channel::Error, "error"),
    (Channel::Resize, "resize"),
];
/// In place of a channel: the one that follows is closed.
const CLOSE: u8 = 255;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Stdin(Bytes),
    StdinEnd,
    Resize(Size),
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    pub width: u16,
    pub height: u16,
}

impl Said {
    /// The newest of the sizes in a message.
    fn resize(data: &[u8]) -> Option<Said> {
        let sizes = serde_json::Deserializer::from_slice(data).into_iter::<Size>();
        sizes.map_while(Result::ok).last().map(Said::Resize)
    }
}

/// The client has left, or cannot be understood.
#[derive(Debug)]
pub(super) struct Gone;

/// A request that asks for one of the framings.
pub(super) enum Upgrade {
    WebSocket(WebSocketUpgrade),
    Spdy(OnUpgrade, Vec<Channel>),
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let refuse = |text: String| (StatusCode::BAD_REQUEST, text).into_response();
        let upgrade = parts.headers.get(header::UPGRADE);
        if upgrade.is_none_or(|u| !u.as_bytes().eq_ignore_ascii_case(SPDY.as_bytes())) {
            let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
            let upgrade = upgrade.map_err(IntoResponse::into_response)?.protocols(PROTOCOLS);
            if upgrade.selected_protocol().is_none() {
                return Err(refuse(format!("the WebSocket subprotocol must be one of {}", PROTOCOLS.join(", "))));
            }
            return Ok(Self::WebSocket(upgrade));
        }
        if !offers(&parts.headers, SPDY_PROTOCOL) {
            return Err(refuse(format!("{STREAM_PROTOCOL} must name {SPDY_PROTOCOL}")));
        }
        let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
            return Err(refuse("this connection cannot be upgraded".to_owned()));
        };
        let query = query(&parts.uri);
        Ok(Self::Spdy(upgrade, expected(|name| flag(&query, name))))
    }
}

/// Whether the client speaks a protocol: it may name several, in one header or in many.
fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let values = headers.get_all(STREAM_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|offered| offered.trim() == protocol)
}

/// The streams that a client opens which asks for these.
fn expected(asked: impl Fn(&str) -> bool) -> Vec<Channel> {
    let opens = |channel: Channel, name: &str| match channel {
        Channel::Error => true,
        Channel::Resize => asked("tty"),
        // A terminal has one output.
        Channel::Stderr => asked(name) && !asked("tty"),
        Channel::Stdin | Channel::Stdout => asked(name),
    };
    CHANNELS.iter().filter(|(channel, name)| opens(*channel, name)).map(|(channel, _)| *channel).collect()
}

impl Upgrade {
    /// Agrees to the upgrade; `talk` starts when the client can be talked to.
    pub fn accept<F>(self, talk: impl FnOnce(Remote) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (upgrade, channels) = match self {
            Self::WebSocket(upgrade) => {
                let upgrade = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
                return upgrade.on_upgrade(|socket| talk(Remote::WebSocket(Box::new(socket))));
            }
            Self::Spdy(upgrade, channels) => (upgrade, channels),
        };
        tokio::spawn(async move {
            let io = match timeout(STREAMS, upgrade).await {
                Ok(Ok(io)) => TokioIo::new(io),
                Ok(Err(error)) => return tracing::debug!(%error, "an upgrade failed"),
                Err(_) => return tracing::debug!("an upgrade took too long"),
            };
            let mut streams = Streams::new(io);
            match timeout(STREAMS, streams.opened(&channels)).await {
                Ok(Ok(())) => talk(Remote::Spdy(streams)).await,
                Ok(Err(Gone)) | Err(_) => tracing::debug!("a client did not open its streams"),
            }
        });
        let agreed = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, SPDY)];
        (StatusCode::SWITCHING_PROTOCOLS, agreed, [(STREAM_PROTOCOL, SPDY_PROTOCOL)]).into_response()
    }
}

pub(super) enum Remote {
    WebSocket(Box<WebSocket>),
    Spdy(Streams),
}

impl Remote {
    /// The next thing that the client says. Nothing is lost when this is given up before its end.
    pub async fn receive(&mut self) -> Result<Said, Gone> {
        match self {
            Self::WebSocket(socket) => loop {
                let said = match socket.recv().await {
                    Some(Ok(Message::Binary(data))) => understand(&data),
                    Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => None,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Gone),
                };
                if let Some(said) = said {
                    return Ok(said);
                }
            },
            Self::Spdy(streams) => streams.receive().await,
        }
    }

    /// To be seen through to its end: half a message is none.
    pub async fn send(&mut self, channel: Channel, data: &[u8]) -> Result<(), Gone> {
        match self {
            Self::WebSocket(socket) => {
                let mut message = Vec::with_capacity(data.len() + 1);
                message.push(channel as u8);
                message.extend_from_slice(data);
                socket.send(Message::Binary(message.into())).await.map_err(|_| Gone)
            }
            Self::Spdy(streams) => streams.send(channel, data).await,
        }
    }

    /// Says the last word on the error channel, and waits until the client has taken it: closing at once could reset the
    /// connection under a client that is still writing (a window's size, a ping), and take what it has not read yet with
    /// it.
    pub async fn end(mut self, status: &str) {
        let end = async {
            self.send(Channel::Error, status.as_bytes()).await?;
            match &mut self {
                Self::WebSocket(socket) => {
                    let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                    socket.send(Message::Close(Some(close))).await.map_err(|_| Gone)?;
                }
                Self::Spdy(streams) => streams.finish().await?,
            }
            while self.receive().await.is_ok() {}
            Ok::<_, Gone>(())
        };
        // A client that is gone by now, or does not care to close, needs nothing any more.
        let _ = timeout(GOODBYE, end).await;
        if let Self::Spdy(streams) = &mut self {
            // Without TLS's own goodbye the tunnel would take this for a broken connection, and drop what it holds.
            let _ = timeout(GOODBYE, streams.io.shutdown()).await;
        }
    }
}

/// What a WebSocket message says.
fn understand(message: &Bytes) -> Option<Said> {
    let (&channel, rest) = message.split_first()?;
    match channel {
        c if c == Channel::Stdin as u8 => Some(Said::Stdin(message.slice(1..))),
        c if c == Channel::Resize as u8 => Said::resize(rest),
        CLOSE if rest == [Channel::Stdin as u8] => Some(Said::StdinEnd),
        _ => None,
    }
}

/// What an upgrade leaves of a connection.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The streams of a SPDY connection.
pub(super) struct Streams {
    io: Box<dyn Wire>,
    decoder: Decoder,
    encoder: Encoder,
    /// By channel.
    open: [Option<u32>; CHANNELS.len()],
    last: u32,
    /// The last of stdin has come together with its end.
    stdin_ended: bool,
    /// What is to be written before anything else is read: at most the answers to one block of frames, or one block.
    out: BytesMut,
}

impl Streams {
    fn new(io: impl Wire + 'static) -> Self {
        let (decoder, encoder) = (Decoder::default(), Encoder::default());
        Self { io: Box::new(io), decoder, encoder, open: [None; _], last: 0, stdin_ended: false, out: BytesMut::new() }
    }

    /// Accepts streams until all of these are there.
    async fn opened(&mut self, channels: &[Channel]) -> Result<(), Gone> {
        while channels.iter().any(|channel| self.open[*channel as usize].is_none()) {
            match self.frame().await? {
                Frame::Open { stream, headers } => {
                    self.last = self.last.max(stream);
                    let kind = headers.iter().find(|(name, _)| name == "streamtype").map(|(_, value)| value.as_str());
                    let channel = CHANNELS.iter().find(|(_, name)| Some(*name) == kind).map(|(channel, _)| *channel);
                    let place = channel.filter(|c| channels.contains(c)).map(|c| &mut self.open[c as usize]);
                    match place {
                        Some(place @ None) => {
                            *place = Some(stream);
                            self.encoder.reply(&mut self.out, stream);
                        }
                        _ => self.encoder.reset(&mut self.out, stream, Refusal::ProtocolError),
                    }
                }
                Frame::Ping { id } => self.encoder.ping(&mut self.out, id),
                Frame::Data { .. } | Frame::Reset { .. } | Frame::GoAway => return Err(Gone),
            }
        }
        self.flush().await
    }

    async fn receive(&mut self) -> Result<Said, Gone> {
        loop {
            if std::mem::take(&mut self.stdin_ended) {
                return Ok(Said::StdinEnd);
            }
            match self.frame().await? {
                Frame::Open { stream, .. } => self.encoder.reset(&mut self.out, stream, Refusal::RefusedStream),
                Frame::Ping { id } => self.encoder.ping(&mut self.out, id),
                Frame::GoAway => return Err(Gone),
                Frame::Reset { stream } => {
                    let Some(place) = self.open.iter().position(|open| *open == Some(stream)) else { continue };
                    self.open[place] = None;
                    self.stdin_ended = place == Channel::Stdin as usize;
                    // Who does not want to know how it ends is not there any more.
                    if place == Channel::Error as usize {
                        return Err(Gone);
                    }
                }
                Frame::Data { stream, data, fin } if self.is(Channel::Stdin, stream) => {
                    self.stdin_ended = fin == Fin::Last;
                    if !data.is_empty() {
                        return Ok(Said::Stdin(data));
                    }
                }
                Frame::Data { stream, data, .. } => {
                    if self.is(Channel::Resize, stream)
                        && let Some(said) = Said::resize(&data)
                    {
                        return Ok(said);
                    }
                }
            }
        }
    }

    fn is(&self, channel: Channel, stream: u32) -> bool {
        self.open[channel as usize] == Some(stream)
    }

    async fn frame(&mut self) -> Result<Frame, Gone> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error @ Malformed(_)) => {
                    tracing::debug!(%error, "a client's SPDY is not understood");
                    return Err(Gone);
                }
            }
            self.flush().await?;
            let received = self.decoder.received();
            received.reserve(BLOCK);
            if told(self.io.read_buf(received).await)? == 0 {
                return Err(Gone);
            }
        }
    }

    /// Writes what there is to write; given up before its end, the next call goes on.
    async fn flush(&mut self) -> Result<(), Gone> {
        while !self.out.is_empty() {
            let count = told(self.io.write(&self.out).await)?;
            if count == 0 {
                return Err(Gone);
            }
            self.out.advance(count);
        }
        told(self.io.flush().await)
    }

    /// A stream that the client did not open, or has reset, is written to in vain.
    async fn send(&mut self, channel: Channel, data: &[u8]) -> Result<(), Gone> {
        if let Some(stream) = self.open[channel as usize] {
            self.encoder.data(&mut self.out, stream, data, Fin::More);
        }
        self.flush().await
    }

    /// Closes our side of every stream, then the door.
    async fn finish(&mut self) -> Result<(), Gone> {
        for stream in self.open.into_iter().flatten() {
            self.encoder.data(&mut self.out, stream, &[], Fin::Last);
        }
        self.encoder.go_away(&mut self.out, self.last);
        self.flush().await
    }
}

fn told<T>(result: io::Result<T>) -> Result<T, Gone> {
    result.map_err(|error| {
        tracing::debug!(%error, "a client has left");
        Gone
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let size = |width, height| Some(Said::Resize(Size { width, height }));
        for (message, want) in [
            (&b"\0ab"[..], Some(Said::Stdin(Bytes::from_static(b"ab")))),
            (b"\x04{\"Width\":80,\"Height\":24}\n", size(80, 24)),
            (b"\x04{\"Width\":80,\"Height\":24}\n{\"Width\":81,\"Height\":25}\n", size(81, 25)),
            (b"\x04nonsense", None),
            (b"\xff\0", Some(Said::StdinEnd)),
            (b"\xff\x01", None),
            (b"\x01from a client", None),
            (b"", None),
        ] {
            assert_eq!(understand(&Bytes::from_static(message)), want, "{message:?}");
        }
    }

    #[test]
    fn streams_follow_from_the_query() {
        use Channel::{Error, Resize, Stderr, Stdin, Stdout};
        for (asked, want) in [
            (&["stdout", "stderr"][..], &[Stdout, Stderr, Error][..]),
            (&["stdin", "stdout", "stderr"], &[Stdin, Stdout, Stderr, Error]),
            (&["stdin", "stdout", "stderr", "tty"], &[Stdin, Stdout, Error, Resize]),
            (&[], &[Error]),
        ] {
            assert_eq!(expected(|name| asked.contains(&name)), want, "{asked:?}");
        }
    }

    #[test]
    fn protocols_come_in_one_header_or_in_many() {
        let headers = |values: &[&'static str]| -> HeaderMap {
            values.iter().map(|v| (STREAM_PROTOCOL.parse().unwrap(), v.parse().unwrap())).collect()
        };
        assert!(offers(&headers(&["v5.channel.k8s.io, v4.channel.k8s.io"]), SPDY_PROTOCOL));
        assert!(offers(&headers(&["v5.channel.k8s.io", "v4.channel.k8s.io"]), SPDY_PROTOCOL));
        assert!(!offers(&headers(&["v3.channel.k8s.io", "v2.channel.k8s.io"]), SPDY_PROTOCOL));
        assert!(!offers(&headers(&[]), SPDY_PROTOCOL));
    }

    fn frames(hex: &[&str]) -> Vec<u8> {
        crate::server::spdy::bytes(&hex.concat())
    }

    #[tokio::test]
    async fn a_conversation_with_kubectl() {
        use crate::server::spdy::KUBECTL;
        let (mut client, server) = tokio::io::duplex(4096);
        let mut streams = Streams::new(server);
        client.write_all(&frames(&KUBECTL[..4])).await.unwrap();
        streams.opened(&expected(|name| name != "tty")).await.unwrap();
        let mut replies = [0; 32 + 3 * 26];
        client.read_exact(&mut replies).await.unwrap();
        assert_eq!(replies[..12], frames(&["800300020000001800000001"]));

        // One stream too many, and a ping: both are answered before anything else is waited for.
        client.write_all(&frames(&["800300010000001500000009000000000000c229975a5404000000ffff"])).await.unwrap();
        client.write_all(&frames(&["80030006000000040000000b"])).await.unwrap();
        client.write_all(&frames(&KUBECTL[4..6])).await.unwrap();
        assert_eq!(streams.receive().await.unwrap(), Said::Stdin(Bytes::from_static(b"hello\n")));
        assert_eq!(streams.receive().await.unwrap(), Said::StdinEnd);
        streams.send(Channel::Stdout, b"ok").await.unwrap();
        let want = frames(&["80030003000000080000000900000003", "80030006000000040000000b", "00000005000000026f6b"]);
        let mut answers = vec![0; want.len()];
        client.read_exact(&mut answers).await.unwrap();
        assert_eq!(answers, want);

        client.write_all(&frames(&KUBECTL[6..])).await.unwrap();
        Remote::Spdy(streams).end("{}").await;
        let mut end = Vec::new();
        client.read_to_end(&mut end).await.unwrap();
        let fins = ["0000000301000000", "0000000501000000", "0000000701000000", "0000000101000000"];
        assert_eq!(
            end,
            frames(&[&["00000001000000027b7d"], &fins[..], &["80030007000000080000000700000000"]].concat())
        );
    }

    #[tokio::test]
    async fn nobody_talks_before_their_streams_are_open() {
        use crate::server::spdy::KUBECTL;
        let (mut client, server) = tokio::io::duplex(4096);
        let mut streams = Streams::new(server);
        client.write_all(&frames(&[KUBECTL[0], KUBECTL[1], KUBECTL[4]])).await.unwrap();
        assert!(streams.opened(&expected(|name| name != "tty")).await.is_err());
    }
}
