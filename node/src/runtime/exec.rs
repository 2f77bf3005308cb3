//! Processes started in running containers, and joining a container's own streams.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::link::{Link, lost, refused};
use super::oci;
use super::types::{ContainerId, ExecOutput, ExecSpec, ExitStatus};
use super::{Error, Runtime};
use crate::shim::proto::{Answer, OnHangup, Request};

/// What `exec_sync` keeps of each stream: a probe's message is far shorter, and the rest is read and dropped.
pub const EXEC_SYNC_OUTPUT: usize = 64 * 1024;

/// What to join of a container's first process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSpec {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A running process's streams. Dropping it closes them; it does not end the process.
pub struct ExecSession {
    /// Dropping it is the end of the process's input.
    pub stdin: Option<Writer>,
    /// With a terminal, everything the process prints.
    pub stdout: Option<Reader>,
    /// Never with a terminal.
    pub stderr: Option<Reader>,
    /// Only with a terminal.
    pub resizer: Option<Resizer>,
    link: Link,
    uid: String,
    ended: Option<ExitStatus>,
}

impl ExecSession {
    /// Waits for the process's end. Cancel-safe; asked again, it answers the same.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        while self.ended.is_none() {
            match self.link.next().await {
                Ok(Some(Answer::Ended { code })) => self.ended = Some(ExitStatus { code }),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(Error::NoSandbox { uid: self.uid.clone() }),
            }
        }
        Ok(self.ended.unwrap_or(ExitStatus { code: 255 }))
    }
}

/// Sets a terminal's size.
#[derive(Clone)]
pub struct Resizer {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Terminal(Arc<OwnedFd>),
    Container(Runtime, ContainerId),
}

impl Resizer {
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        match &self.target {
            Target::Terminal(fd) => {
                use std::os::fd::AsFd;
                crate::shim::set_window(fd.as_fd(), columns, rows).map_err(Error::io("resize", "terminal"))
            }
            Target::Container(runtime, id) => {
                let request = Request::Resize { container: id.local(), columns, rows };
                runtime.ask(id, "resize", &request).await.map(drop)
            }
        }
    }
}

impl Runtime {
    /// Starts a process in a running container.
    pub async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, Error> {
        self.start_exec(id, &spec, OnHangup::Leave).await
    }

    /// Runs a command to its end; past `timeout` it is killed and the answer is `Error::Timeout`.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let spec = ExecSpec { command: command.to_vec(), stdout: true, stderr: true, ..Default::default() };
        let run = async {
            let mut session = self.start_exec(id, &spec, OnHangup::Kill).await?;
            let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
            let mut out = (Vec::new(), Vec::new());
            let status = {
                // A process may leave children that hold its streams: its own end is the end.
                let reading = async { tokio::join!(keep(stdout, &mut out.0), keep(stderr, &mut out.1)) };
                let mut reading = Box::pin(reading);
                tokio::select! {
                    biased;
                    _ = &mut reading => session.wait().await?,
                    status = session.wait() => {
                        // What it printed last is in the pipes already.
                        let _ = tokio::time::timeout(LAST_WORDS, &mut reading).await;
                        status?
                    }
                }
            };
            Ok(ExecOutput { status, stdout: out.0, stderr: out.1 })
        };
        match tokio::time::timeout(timeout, run).await {
            Ok(result) => result,
            // The connection is dropped with the future; the shim kills the process when it sees that.
            Err(_) => Err(Error::Timeout { operation: "exec", subject: id.to_string(), seconds: timeout.as_secs() }),
        }
    }

    /// Joins the streams of the container's first process. `wait` answers when it exits.
    pub async fn attach(&self, id: &ContainerId, spec: AttachSpec) -> Result<ExecSession, Error> {
        let pod_dir = self.pod_dir(&id.pod_uid);
        let mut streams = Streams::default();
        let mut theirs = Vec::new();
        let mut open = || -> io::Result<()> {
            if spec.stdin {
                let (read, write) = pipe_pair()?;
                streams.stdin = Some(Box::new(pipe::Sender::from_owned_fd(nonblocking(write)?)?));
                theirs.push(read);
            }
            for (wanted, slot) in [(spec.stdout, &mut streams.stdout), (spec.stderr, &mut streams.stderr)] {
                if wanted {
                    let (read, write) = pipe_pair()?;
                    *slot = Some(Box::new(pipe::Receiver::from_owned_fd(nonblocking(read)?)?));
                    theirs.push(write);
                }
            }
            Ok(())
        };
        open().map_err(Error::io("make pipes for", id.to_string()))?;
        let request =
            Request::Attach { container: id.local(), stdin: spec.stdin, stdout: spec.stdout, stderr: spec.stderr };
        let mut link = Link::connect(&pod_dir).map_err(|_| Error::NoSandbox { uid: id.pod_uid.clone() })?;
        let raw: Vec<RawFd> = theirs.iter().map(|fd| fd.as_raw_fd()).collect();
        let (answer, _) =
            link.call(&request, &raw).await.map_err(|e| lost(e, &id.pod_uid, "attach to", &id.to_string()))?;
        refused(answer, "attach to", &id.to_string())?;
        let resizer = Resizer { target: Target::Container(self.clone(), id.clone()) };
        Ok(streams.session(link, &id.pod_uid, Some(resizer)))
    }

    async fn start_exec(&self, id: &ContainerId, spec: &ExecSpec, on_hangup: OnHangup) -> Result<ExecSession, Error> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let pod_dir = self.pod_dir(&id.pod_uid);
        let bundle = pod_dir.join("containers").join(id.local());
        let config = bundle.join("config.json");
        let bytes = fs::read(&config).map_err(|_| Error::NoSandbox { uid: id.pod_uid.clone() })?;
        let config: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| Error::io("parse", &config)(e.into()))?;
        let process = oci::exec_process(&config, &spec.command, &spec.env, spec.tty);
        // Agents come and go; two of them must not name two processes alike.
        let name = format!("exec-{}-{}.json", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let file = bundle.join(&name);
        fs::write(&file, process.to_string()).map_err(Error::io("write", &file))?;
        let started = self.start_process(id, spec, name, on_hangup).await;
        if started.is_err() {
            let _ = fs::remove_file(&file);
        }
        started
    }

    async fn start_process(
        &self,
        id: &ContainerId,
        spec: &ExecSpec,
        process: String,
        on_hangup: OnHangup,
    ) -> Result<ExecSession, Error> {
        let subject = id.to_string();
        let mut link =
            Link::connect(&self.pod_dir(&id.pod_uid)).map_err(|_| Error::NoSandbox { uid: id.pod_uid.clone() })?;
        let (mut streams, theirs) = if spec.tty {
            (Streams::default(), None)
        } else {
            let (ours, theirs) = Streams::pipes(spec).map_err(Error::io("make pipes for", &subject))?;
            (ours, Some(theirs))
        };
        let raw: Vec<RawFd> = theirs.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
        let request = Request::Exec { container: id.local(), process, terminal: spec.tty, on_hangup };
        let (answer, terminal) =
            link.call(&request, &raw).await.map_err(|e| lost(e, &id.pod_uid, "exec in", &subject))?;
        drop(theirs);
        refused(answer, "exec in", &subject)?;
        let mut resizer = None;
        if let Some(terminal) = terminal {
            let terminal = Terminal::new(terminal).map_err(Error::io("use the terminal of", &subject))?;
            resizer = Some(Resizer { target: Target::Terminal(terminal.fd.get_ref().clone()) });
            streams.stdout = Some(Box::new(terminal.clone()));
            streams.stdin = spec.stdin.then(|| Box::new(terminal) as Writer);
        }
        Ok(streams.session(link, &id.pod_uid, resizer))
    }
}

/// How long a finished command's output may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Reads to the end, keeping the beginning.
async fn keep(stream: Option<Reader>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0u8; 8192];
    while let Ok(n) = stream.read(&mut chunk).await {
        if n == 0 {
            return;
        }
        let room = EXEC_SYNC_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
}

/// This side of a process's streams.
#[derive(Default)]
struct Streams {
    stdin: Option<Writer>,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
}

impl Streams {
    /// Pipes for what is wanted and /dev/null for the rest; the second part is the process's side, in order.
    fn pipes(spec: &ExecSpec) -> io::Result<(Streams, [OwnedFd; 3])> {
        let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let mut streams = Streams::default();
        let stdin = if spec.stdin {
            let (read, write) = pipe_pair()?;
            streams.stdin = Some(Box::new(pipe::Sender::from_owned_fd(nonblocking(write)?)?));
            read
        } else {
            null()?
        };
        let output = |wanted: bool, slot: &mut Option<Reader>| -> io::Result<OwnedFd> {
            if !wanted {
                return null();
            }
            let (read, write) = pipe_pair()?;
            *slot = Some(Box::new(pipe::Receiver::from_owned_fd(nonblocking(read)?)?));
            Ok(write)
        };
        let stdout = output(spec.stdout, &mut streams.stdout)?;
        let stderr = output(spec.stderr, &mut streams.stderr)?;
        Ok((streams, [stdin, stdout, stderr]))
    }

    fn session(self, link: Link, uid: &str, resizer: Option<Resizer>) -> ExecSession {
        ExecSession {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
            resizer,
            link,
            uid: uid.to_owned(),
            ended: None,
        }
    }
}

fn pipe_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Only this end: the process's own must block as programs expect.
fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// The master side of a terminal.
#[derive(Clone)]
struct Terminal {
    fd: Arc<AsyncFd<Arc<OwnedFd>>>,
}

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Terminal> {
        let fd = Arc::new(nonblocking(fd)?);
        // SAFETY: the descriptor is open, and the `AsyncFd` owns a share of it, so it stays so until it is deregistered.
        let registered = unsafe { AsyncFd::register(fd) }?;
        Ok(Terminal { fd: Arc::new(registered) })
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), room)?)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the other side open any more: the end, for a terminal.
                Ok(Err(e)) if e.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), data)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
