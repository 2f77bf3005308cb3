//! exec and attach: what passes between a client and a process, whatever the client's framing.

use std::time::Duration;

use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    Named, NamedPath, Served, flag, named, query,
    remote::{Channel, Gone, Remote, Said, Upgrade},
};
use crate::runtime::{AttachSpec, ContainerId, ExecSession, ExecSpec, ExitStatus, RunState};

/// The most read at once from a process.
const BLOCK: usize = 32 * 1024;
/// A process has written everything before its end is told; only children that hold its pipes open keep them silent and
/// not closed for so long.
const LAST_WORDS: Duration = Duration::from_millis(50);

pub(super) async fn exec(state: State<Served>, path: NamedPath, uri: Uri, upgrade: Upgrade) -> Response {
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
    upgrade.accept(move |remote| async move {
        let session = state.runtime.exec(&id, spec).await;
        converse(remote, session.map_err(|error| crate::pod::error_text(&error)), Some(&command)).await;
    })
}

pub(super) async fn attach(state: State<Served>, path: NamedPath, uri: Uri, upgrade: Upgrade) -> Response {
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
    upgrade.accept(move |remote| async move {
        let session = state.runtime.attach(&id, spec).await;
        converse(remote, session.map_err(|error| crate::pod::error_text(&error)), None).await;
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

/// Passes bytes between a client and a process until the process ends or the client leaves. `command` is what was asked to
/// run; who only attaches asked for nothing, and is not told how it ended.
async fn converse(mut remote: Remote, session: Result<ExecSession, String>, command: Option<&[String]>) {
    let outcome = match session {
        Ok(session) => match relay(&mut remote, session).await {
            Ok(outcome) => outcome,
            Err(Gone) => return,
        },
        Err(error) => Err(error),
    };
    remote.end(&final_status(&outcome, command).to_string()).await;
}

/// What the error channel says at the end.
fn final_status(outcome: &Result<ExitStatus, String>, command: Option<&[String]>) -> Value {
    match (outcome, command) {
        (Ok(ExitStatus { code: 0 }), _) | (Ok(_), None) => json!({"metadata": {}, "status": "Success"}),
        (Ok(ExitStatus { code }), Some(command)) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: {} exited with {code}", command.join(" ")),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        (Err(error), _) => json!({
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

async fn relay(remote: &mut Remote, mut session: ExecSession) -> Result<Result<ExitStatus, String>, Gone> {
    let mut stdin = session.stdin.take();
    let (mut stdout, mut stderr) = (session.stdout.take(), session.stderr.take());
    let resizer = session.resizer.take();
    let (mut out, mut err) = (vec![0u8; BLOCK], vec![0u8; BLOCK]);
    let mut pending = Bytes::new();
    loop {
        tokio::select! {
            // While stdin is full nothing further is read: the client is slowed down, nothing is buffered.
            said = remote.receive(), if pending.is_empty() => match said? {
                Said::Stdin(data) => pending = data,
                Said::StdinEnd => stdin = None,
                Said::Resize(size) => if let Some(resizer) = &resizer
                    && let Err(error) = resizer.resize(size.width, size.height).await
                {
                    tracing::debug!(%error, "a terminal keeps its size");
                },
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
                Ok(count) if count > 0 => remote.send(Channel::Stdout, &out[..count]).await?,
                Ok(_) | Err(_) => stdout = None,
            },
            count = read(&mut stderr, &mut err) => match count {
                Ok(count) if count > 0 => remote.send(Channel::Stderr, &err[..count]).await?,
                Ok(_) | Err(_) => stderr = None,
            },
            status = session.wait() => {
                // The exit is told only after everything that was printed before it.
                drain(remote, &mut stdout, Channel::Stdout, &mut out).await?;
                drain(remote, &mut stderr, Channel::Stderr, &mut err).await?;
                return Ok(status.map_err(|error| crate::pod::error_text(&error)));
            }
        }
    }
}

/// What a process has left behind in its pipe.
async fn drain(
    remote: &mut Remote,
    stream: &mut Option<Reader>,
    channel: Channel,
    buffer: &mut [u8],
) -> Result<(), Gone> {
    while stream.is_some() {
        match timeout(LAST_WORDS, read(stream, buffer)).await {
            Ok(Ok(count)) if count > 0 => remote.send(channel, &buffer[..count]).await?,
            Ok(_) | Err(_) => break,
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_carries_the_exit_code() {
        assert_eq!(final_status(&Ok(ExitStatus { code: 0 }), Some(&[]))["status"], "Success");
        let failed = final_status(&Ok(ExitStatus { code: 3 }), Some(&["sh".to_owned()]));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        assert_eq!(
            final_status(&Ok(ExitStatus { code: 3 }), None)["status"],
            "Success",
            "an attached client only watched"
        );
        assert_eq!(final_status(&Err("no such command".to_owned()), Some(&[]))["message"], "no such command");
    }
}
