//! exec and attach over WebSocket, in the framing of `v5.channel.k8s.io`: the first byte of a message names its channel.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{Named, NamedPath, Served, flag, named, query};
use crate::runtime::{AttachSpec, ContainerId, ExecSession, ExecSpec, ExitStatus, Resizer, RunState};

/// In the order of preference. v4 is v5 without the half-close of stdin.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The largest message taken from a client, and the most read at once from a process.
const MESSAGE_MAX: usize = 1 << 20;
const BLOCK: usize = 32 * 1024;
/// A process has written everything before its end is told; only children that hold its pipes open keep them silent and
/// not closed for so long.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// How long a client may take to answer the end of a conversation.
const GOODBYE: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub(super) async fn exec(state: State<Served>, path: NamedPath, uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let query = query(&uri);
    let (named, id) = match running(&state, &path).await {
        Ok(found) => found,
        Err(response) => return *response,
    };
    let spec = ExecSpec {
        command: query.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone()).collect(),
        tty: flag(&query, "tty"),
        stdin: flag(&query, "stdin"),
        stdout: flag(&query, "stdout"),
        stderr: flag(&query, "stderr") && !flag(&query, "tty"),
        env: Vec::new(),
    };
    if spec.command.is_empty() {
        return (StatusCode::BAD_REQUEST, "you must specify at least 1 command").into_response();
    }
    drop(named);
    let command = spec.command.clone();
    open(upgrade, move |socket| async move {
        let session = state.runtime.exec(&id, spec).await;
        converse(socket, session.map_err(|error| crate::pod::error_text(&error)), &command).await;
    })
}

pub(super) async fn attach(state: State<Served>, path: NamedPath, uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let query = query(&uri);
    let (named, id) = match running(&state, &path).await {
        Ok(found) => found,
        Err(response) => return *response,
    };
    let containers = named.pod.spec.iter().flat_map(|s| &s.containers);
    let tty = containers.filter(|c| c.name == named.container).any(|c| c.tty == Some(true));
    let spec = AttachSpec {
        stdin: flag(&query, "stdin"),
        stdout: flag(&query, "stdout"),
        stderr: flag(&query, "stderr") && !tty,
    };
    open(upgrade, move |socket| async move {
        let session = state.runtime.attach(&id, spec).await;
        converse(socket, session.map_err(|error| crate::pod::error_text(&error)), &[]).await;
    })
}

/// The running attempt of the container that the path names.
async fn running(state: &State<Served>, path: &NamedPath) -> Result<(Named, ContainerId), Box<Response>> {
    let named = named(state, path)?;
    let uid = named.pod.metadata.uid.clone().unwrap_or_default();
    let states = state.runtime.status(&uid).await.unwrap_or_default();
    let own = states.into_iter().find(|s| s.name == named.container && matches!(s.state, RunState::Running { .. }));
    match own {
        Some(own) => Ok((named, own.id)),
        None => {
            let text = format!("container not found ({:?}): it is not running", named.container);
            Err(Box::new((StatusCode::NOT_FOUND, text).into_response()))
        }
    }
}

fn open<F>(upgrade: WebSocketUpgrade, talk: impl FnOnce(WebSocket) -> F + Send + 'static) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX);
    if upgrade.selected_protocol().is_none() {
        let text = format!("the WebSocket subprotocol must be one of {}", PROTOCOLS.join(", "));
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    upgrade.on_upgrade(talk)
}

type Sender = SplitSink<WebSocket, Message>;

async fn send(sender: &mut Sender, channel: u8, data: &[u8]) -> Result<(), axum::Error> {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    sender.send(Message::Binary(message.into())).await
}

/// Passes bytes between a client and a process until the process ends or the client leaves.
async fn converse(socket: WebSocket, session: Result<ExecSession, String>, command: &[String]) {
    let (mut sender, mut receiver) = socket.split();
    let outcome = match session {
        Ok(session) => match relay(&mut sender, &mut receiver, session).await {
            Some(outcome) => outcome,
            // The client has left.
            None => return,
        },
        Err(error) => Err(error),
    };
    let status = final_status(&outcome, command).to_string();
    let end = Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }));
    // A client that is gone by now does not need the answer.
    if send(&mut sender, ERROR, status.as_bytes()).await.is_ok() && sender.send(end).await.is_ok() {
        // Closing at once could reset the connection under a client that is still writing (a window's size, a ping), and
        // take what it has not read yet with it: its own close says that it has read everything.
        let _ = timeout(GOODBYE, until_closed(&mut receiver)).await;
    }
}

async fn until_closed(receiver: &mut (impl StreamExt<Item = Result<Message, axum::Error>> + Unpin)) {
    while let Some(Ok(message)) = receiver.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

/// What the error channel says at the end.
fn final_status(outcome: &Result<ExitStatus, String>, command: &[String]) -> Value {
    match outcome {
        Ok(ExitStatus { code: 0 }) => json!({"metadata": {}, "status": "Success"}),
        Ok(ExitStatus { code }) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: {} exited with {code}", command.join(" ")),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "InternalError",
            "message": error,
            "details": {"causes": [{"message": error}]},
            "code": 500,
        }),
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// One output of the process; never anything when it is closed or was not wanted.
async fn read(stream: &mut Option<Reader>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn relay(
    sender: &mut Sender,
    receiver: &mut (impl StreamExt<Item = Result<Message, axum::Error>> + Unpin),
    mut session: ExecSession,
) -> Option<Result<ExitStatus, String>> {
    let mut stdin = session.stdin.take();
    let (mut stdout, mut stderr) = (session.stdout.take(), session.stderr.take());
    let resizer = session.resizer.take();
    let (mut out, mut err) = (vec![0u8; BLOCK], vec![0u8; BLOCK]);
    let mut pending = Bytes::new();
    loop {
        tokio::select! {
            // While stdin is full no further message is read: the client is slowed down, nothing is buffered.
            message = receiver.next(), if pending.is_empty() => match message {
                Some(Ok(Message::Binary(data))) => take(data, &mut stdin, &mut pending, resizer.as_ref()).await,
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            },
            written = write(&mut stdin, &pending), if !pending.is_empty() => match written {
                Ok(count) => drop(pending.split_to(count)),
                // The process does not read any more; its end will be told by `wait`.
                Err(_) => {
                    stdin = None;
                    pending.clear();
                }
            },
            count = read(&mut stdout, &mut out) => match count {
                Ok(count) if count > 0 => send(sender, STDOUT, &out[..count]).await.ok()?,
                Ok(_) | Err(_) => stdout = None,
            },
            count = read(&mut stderr, &mut err) => match count {
                Ok(count) if count > 0 => send(sender, STDERR, &err[..count]).await.ok()?,
                Ok(_) | Err(_) => stderr = None,
            },
            status = session.wait() => {
                // The exit is told only after everything that was printed before it.
                drain(sender, &mut stdout, STDOUT, &mut out).await?;
                drain(sender, &mut stderr, STDERR, &mut err).await?;
                return Some(status.map_err(|error| crate::pod::error_text(&error)));
            }
        }
    }
}

/// What a process has left behind in its pipe.
async fn drain(sender: &mut Sender, stream: &mut Option<Reader>, channel: u8, buffer: &mut [u8]) -> Option<()> {
    while stream.is_some() {
        match timeout(LAST_WORDS, read(stream, buffer)).await {
            Ok(Ok(count)) if count > 0 => send(sender, channel, &buffer[..count]).await.ok()?,
            Ok(_) | Err(_) => break,
        }
    }
    Some(())
}

async fn write(stdin: &mut Option<Writer>, data: &[u8]) -> std::io::Result<usize> {
    match stdin {
        Some(stdin) => {
            let count = stdin.write(data).await?;
            stdin.flush().await?;
            Ok(count)
        }
        None => Ok(data.len()),
    }
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Takes one message of the client.
async fn take(data: Bytes, stdin: &mut Option<Writer>, pending: &mut Bytes, resizer: Option<&Resizer>) {
    match data.split_first() {
        Some((&STDIN, _)) => *pending = data.slice(1..),
        Some((&RESIZE, rest)) => {
            if let (Some(resizer), Ok(size)) = (resizer, serde_json::from_slice::<Size>(rest))
                && let Err(error) = resizer.resize(size.width, size.height).await
            {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
        Some((&CLOSE, [STDIN])) => *stdin = None,
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_carries_the_exit_code() {
        assert_eq!(final_status(&Ok(ExitStatus { code: 0 }), &[])["status"], "Success");
        let failed = final_status(&Ok(ExitStatus { code: 3 }), &["sh".to_owned()]);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        assert_eq!(final_status(&Err("no such command".to_owned()), &[])["message"], "no such command");
    }
}
