//! Talking to one shim.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::error::Error;
use crate::shim::SOCKET;
use crate::shim::proto::{Answer, Inbox, Request, send};

/// Longer than the shim's own patience with a process that does not die.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection. Requests on it are answered in order.
pub struct Link {
    socket: UnixStream,
    inbox: Inbox,
}

impl Link {
    /// `None` when nobody listens.
    pub fn connect(pod_dir: &Path) -> io::Result<Link> {
        let socket = in_dir(pod_dir, |path| StdStream::connect(path))?;
        socket.set_nonblocking(true)?;
        Ok(Link { socket: UnixStream::from_std(socket)?, inbox: Inbox::default() })
    }

    /// Asks, and waits for the answer; a descriptor that comes with it is the second part.
    pub async fn call(&mut self, request: &Request, fds: &[RawFd]) -> io::Result<(Answer, Option<OwnedFd>)> {
        let exchange = async {
            self.socket.async_io(Interest::WRITABLE, || send(self.socket.as_fd(), request, fds)).await?;
            let answer = self.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok((answer, self.inbox.fds.pop()))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends what has no answer but the connection's end.
    pub async fn tell(&mut self, request: &Request) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, || send(self.socket.as_fd(), request, &[])).await
    }

    /// The next thing the shim says; `None` at its end.
    pub async fn next(&mut self) -> io::Result<Option<Answer>> {
        loop {
            if let Some(answer) = self.inbox.next()? {
                return Ok(Some(answer));
            }
            let (socket, inbox) = (&self.socket, &mut self.inbox);
            if !socket.async_io(Interest::READABLE, || inbox.fill(socket.as_fd())).await? {
                return Ok(None);
            }
        }
    }
}

/// The socket a new shim will serve: it is there before the shim is, so nobody has to wait for it to appear.
pub fn listen(pod_dir: &Path) -> io::Result<UnixListener> {
    in_dir(pod_dir, |path| UnixListener::bind(path))
}

/// A unix socket's path may hold 107 bytes; a pod's directory alone can be longer.
fn in_dir<T>(pod_dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
        .open(pod_dir)?;
    act(Path::new(&format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())))
}

/// One request on a connection of its own.
pub async fn ask(
    pod_dir: &Path,
    uid: &str,
    operation: &'static str,
    subject: &str,
    request: &Request,
) -> Result<Answer, Error> {
    let mut link = Link::connect(pod_dir).map_err(|_| Error::NoSandbox { uid: uid.to_owned() })?;
    let (answer, _) = link.call(request, &[]).await.map_err(|e| lost(e, uid, operation, subject))?;
    refused(answer, operation, subject)
}

/// What a broken connection means.
pub fn lost(error: io::Error, uid: &str, operation: &'static str, subject: &str) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            Error::Timeout { operation, subject: subject.to_owned(), seconds: PATIENCE.as_secs() }
        }
        _ => Error::NoSandbox { uid: uid.to_owned() },
    }
}

pub fn refused(answer: Answer, operation: &'static str, subject: &str) -> Result<Answer, Error> {
    match answer {
        Answer::Failed { message } => Err(Error::Shim { operation, subject: subject.to_owned(), message }),
        answer => Ok(answer),
    }
}
