//! One container as its shim sees it: libcontainer's calls, the streams, the log, and how it ended.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp};
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde::Deserialize;

use super::executor::Payload;
use super::log::{Lines, LogFile, Stream};
use super::proto::{Create, EXIT_FILE, Inbox};
use crate::runtime::{Cgroups, Exit, RunState};

/// One read of a container's output.
const READ: usize = 16 * 1024;
/// After a container's end its pipes are emptied; something outside that still holds one must not keep this going.
const MAX_DRAIN: usize = 1 << 20;
/// With more than this unread by an attached client, the container waits for it, as a program waits for its terminal.
const MAX_BACKLOG: usize = 64 * 1024;
/// A client that reads nothing for so long is let go; the container must not hang on it.
const MAX_STUCK: Duration = Duration::from_secs(10);
/// What has been printed before a container's end gets this long to reach who is attached.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A stream of the container and the line it is in.
pub struct Output {
    pub fd: OwnedFd,
    stream: Stream,
    lines: Lines,
}

/// A client's view of the streams.
pub struct Attached {
    /// The connection that hears of the end.
    pub connection: u64,
    pub stdin: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd, Vec<u8>)>,
    /// Since when it has had more unread than it may.
    stuck: Option<Instant>,
}

pub struct Container {
    pub spec: Create,
    pub pid: Option<Pid>,
    pub state: RunState,
    pub outputs: Vec<Output>,
    pub attached: Vec<Attached>,
    /// The container's standard input, or its terminal.
    input: Option<OwnedFd>,
    /// What a client has typed and the container has not read.
    typed: Vec<u8>,
    log: Option<LogFile>,
}

/// Where a pod's containers live.
pub struct Paths<'a> {
    pub pod: &'a Path,
}

impl Paths<'_> {
    pub fn bundle(&self, container: &str) -> PathBuf {
        self.pod.join("containers").join(container)
    }

    /// libcontainer's own state.
    pub fn oci(&self) -> PathBuf {
        self.pod.join("oci")
    }
}

impl Container {
    /// Runs libcontainer up to the point where the command would start.
    pub fn create(paths: &Paths, spec: Create) -> Result<Container, String> {
        let log = LogFile::open(&spec.log_path).map_err(|e| format!("open log {}: {e}", spec.log_path.display()))?;
        let bundle = paths.bundle(&spec.container);
        fs::create_dir_all(paths.oci()).map_err(|e| format!("create {}: {e}", paths.oci().display()))?;
        let builder = ContainerBuilder::new(spec.container.clone(), SyscallType::default())
            .with_executor(Payload::default())
            .with_root_path(paths.oci())
            .map_err(|e| describe(&e))?;
        let mut container = Container {
            pid: None,
            state: RunState::Created,
            outputs: Vec::new(),
            attached: Vec::new(),
            input: None,
            typed: Vec::new(),
            log: Some(log),
            spec,
        };
        let built = if container.spec.terminal {
            let console = Console::open(&bundle)?;
            let built =
                builder.with_console_socket(Some(console.path.clone())).as_init(&bundle).with_systemd(false).build();
            let built = built.map_err(|e| describe(&e))?;
            container.use_terminal(console.receive()?)?;
            built
        } else {
            let builder = container.with_pipes(builder).map_err(|e| format!("make pipes: {e}"))?;
            builder.as_init(&bundle).with_systemd(false).build().map_err(|e| describe(&e))?
        };
        container.pid = built.pid().map(|p| Pid::from_raw(p.as_raw()));
        if let Some(pid) = container.pid {
            set_oom_score(pid, container.spec.oom_score_adj);
        }
        Ok(container)
    }

    fn with_pipes(&mut self, builder: ContainerBuilder) -> io::Result<ContainerBuilder> {
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        let mut builder = builder.with_stdout(stdout_end).with_stderr(stderr_end);
        if self.spec.stdin {
            let (stdin_end, stdin) = pipe()?;
            set_nonblocking(&stdin)?;
            self.input = Some(stdin);
            builder = builder.with_stdin(stdin_end);
        }
        for (fd, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            set_nonblocking(&fd)?;
            self.outputs.push(Output { fd, stream, lines: Lines::default() });
        }
        Ok(builder)
    }

    fn use_terminal(&mut self, master: OwnedFd) -> Result<(), String> {
        let use_it = || -> io::Result<(OwnedFd, OwnedFd)> {
            set_nonblocking(&master)?;
            Ok((master.try_clone()?, master))
        };
        let (output, input) = use_it().map_err(|e| format!("use the terminal: {e}"))?;
        self.outputs.push(Output { fd: output, stream: Stream::Stdout, lines: Lines::default() });
        self.input = Some(input);
        Ok(())
    }

    pub fn start(&mut self, paths: &Paths, now: Timestamp) -> Result<(), String> {
        if self.state != RunState::Created {
            return Err("it is not in the created state".to_owned());
        }
        let mut oci = OciContainer::load(paths.oci().join(&self.spec.container)).map_err(|e| describe(&e))?;
        oci.start().map_err(|e| describe(&e))?;
        self.state = RunState::Running { started_at: now };
        Ok(())
    }

    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        if self.spec.terminal { self.input.as_ref().map(AsFd::as_fd) } else { None }
    }

    /// Takes what stream `index` holds now to the log and to who is attached. `false` once the stream has ended.
    pub fn read_output(&mut self, index: usize, now: Timestamp) -> bool {
        let mut chunk = [0u8; READ];
        let Some(output) = self.outputs.get_mut(index) else { return false };
        let n = match nix::unistd::read(&output.fd, &mut chunk) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return true,
            // A terminal whose last process has gone answers EIO.
            Err(_) => 0,
        };
        let stream = output.stream;
        let mut entries = Vec::new();
        if n == 0 {
            output.lines.finish(stream, now, &mut entries);
            self.outputs.remove(index);
        } else {
            output.lines.push(stream, &chunk[..n], now, &mut entries);
        }
        self.log(&entries);
        for client in &mut self.attached {
            client.push(stream, &chunk[..n]);
        }
        n > 0
    }

    fn log(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if let Some(Err(e)) = self.log.as_mut().map(|log| log.write(entries)) {
            tracing::error!(log = %self.spec.log_path.display(), error = %e, "log lines lost");
        }
    }

    /// Joins a client. Its ends of the pipes are ours to make non-blocking.
    pub fn attach(
        &mut self,
        connection: u64,
        stdin: Option<OwnedFd>,
        outputs: Vec<(Stream, OwnedFd)>,
    ) -> io::Result<()> {
        for fd in stdin.iter().chain(outputs.iter().map(|(_, fd)| fd)) {
            set_nonblocking(fd)?;
        }
        let outputs = outputs.into_iter().map(|(stream, fd)| (stream, fd, Vec::new())).collect();
        self.attached.push(Attached { connection, stdin, outputs, stuck: None });
        Ok(())
    }

    /// Whether there is room for a client's typing.
    pub fn accepts_input(&self) -> bool {
        self.typed.is_empty() && self.input.is_some()
    }

    /// Where pending typing waits to be written.
    pub fn blocked_input(&self) -> Option<BorrowedFd<'_>> {
        if self.typed.is_empty() { None } else { self.input.as_ref().map(AsFd::as_fd) }
    }

    /// Passes on what client `index` has typed.
    pub fn read_input(&mut self, index: usize) {
        let mut chunk = [0u8; READ];
        let Some(client) = self.attached.get_mut(index) else { return };
        let Some(stdin) = &client.stdin else { return };
        match nix::unistd::read(stdin, &mut chunk) {
            Ok(n) if n > 0 => {
                self.typed.extend_from_slice(&chunk[..n]);
                self.write_input();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                client.stdin = None;
                if self.spec.stdin_once && !self.spec.terminal {
                    self.input = None;
                }
            }
        }
    }

    pub fn write_input(&mut self) {
        let Some(input) = &self.input else {
            self.typed = Vec::new();
            return;
        };
        match nix::unistd::write(input, &self.typed) {
            Ok(n) => drop(self.typed.drain(..n)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.typed = Vec::new(),
        }
    }

    /// Writes what waits for attached clients, and lets go those who do not read or have left.
    pub fn flush_attached(&mut self) {
        self.attached.retain_mut(Attached::flush);
    }

    /// Whether somebody attached has so much to read that the container has to wait.
    pub fn held_back(&self) -> bool {
        self.attached.iter().any(Attached::behind)
    }

    /// Everything that follows the first process's end: the rest of its processes, its output, its record.
    pub fn finish(&mut self, paths: &Paths, cgroups: &Cgroups, status: WaitStatus, now: Timestamp) {
        // Without a pid namespace of its own, children outlive the first process.
        cgroups.kill_once(&self.spec.cgroup);
        let oom_killed = cgroups.oom_kills(&self.spec.cgroup) > 0;
        let mut drained = 0;
        while !self.outputs.is_empty() && drained < MAX_DRAIN {
            let before = self.outputs.len();
            for index in (0..before).rev() {
                if readable(self.outputs[index].fd.as_fd()) {
                    self.read_output(index, now);
                }
            }
            drained += READ;
            self.flush_attached();
            if self.outputs.len() == before && !self.outputs.iter().any(|o| readable(o.fd.as_fd())) {
                break;
            }
        }
        self.say_last_words();
        let started_at = match self.state {
            RunState::Running { started_at } => Some(started_at),
            RunState::Created | RunState::Exited(_) => None,
        };
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (code, None),
            WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
            _ => (255, None),
        };
        let exit = Exit { code, signal, oom_killed: oom_killed && signal == Some(9), started_at, finished_at: now };
        if let Err(e) = write_exit(&paths.bundle(&self.spec.container), &exit) {
            tracing::error!(container = %self.spec.container, error = %e, "cannot write down an exit");
        }
        self.state = RunState::Exited(exit);
        self.pid = None;
        self.input = None;
        self.typed = Vec::new();
        self.outputs = Vec::new();
        self.attached = Vec::new();
        self.log = None;
    }
}

impl Container {
    /// Waits, not for long, until who is attached has everything.
    fn say_last_words(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        loop {
            self.flush_attached();
            let mut blocked: Vec<PollFd> = self.attached.iter().flat_map(Attached::blocked).map(writable).collect();
            let left = end.saturating_duration_since(Instant::now());
            if blocked.is_empty() || left.is_zero() {
                return;
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut blocked, timeout).is_err_and(|e| e != Errno::EINTR) {
                return;
            }
        }
    }
}

fn writable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLOUT)
}

impl Attached {
    fn push(&mut self, stream: Stream, data: &[u8]) {
        for (_, _, backlog) in self.outputs.iter_mut().filter(|(s, _, _)| *s == stream) {
            backlog.extend_from_slice(data);
        }
    }

    fn behind(&self) -> bool {
        self.outputs.iter().any(|(_, _, backlog)| backlog.len() > MAX_BACKLOG)
    }

    /// `false` when there is nothing left of this client.
    fn flush(&mut self) -> bool {
        let mut progress = false;
        self.outputs.retain_mut(|(_, fd, backlog)| {
            if backlog.is_empty() {
                return true;
            }
            match nix::unistd::write(&*fd, backlog) {
                Ok(n) => {
                    progress |= n > 0;
                    backlog.drain(..n);
                    true
                }
                Err(e) => matches!(e, Errno::EAGAIN | Errno::EINTR),
            }
        });
        self.stuck = if progress || !self.behind() { None } else { self.stuck.or_else(|| Some(Instant::now())) };
        if self.stuck.is_some_and(|since| since.elapsed() > MAX_STUCK) {
            return false;
        }
        self.stdin.is_some() || !self.outputs.is_empty()
    }

    /// Descriptors that wait for room.
    pub fn blocked(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().filter(|(_, _, backlog)| !backlog.is_empty()).map(|(_, fd, _)| fd.as_fd())
    }
}

/// What an exec'd process gets besides its OCI description.
#[derive(Deserialize)]
struct ExecFile {
    /// The OCI process itself, as libcontainer reads it; here only to be looked at.
    #[serde(rename = "minik8s-capabilities")]
    capabilities: Option<Vec<String>>,
}

/// The part of a container's configuration that exec'd processes need and libcontainer drops.
#[derive(Deserialize)]
struct Config {
    linux: ConfigLinux,
}

#[derive(Deserialize)]
struct ConfigLinux {
    seccomp: Option<LinuxSeccomp>,
}

/// What came of starting a process in a container.
pub struct Started {
    pub pid: Pid,
    pub terminal: Option<OwnedFd>,
}

/// Starts `process` (a file in the bundle) in a running container. `streams` are its stdin, stdout and stderr.
pub fn exec(paths: &Paths, container: &str, process: &str, streams: Option<[OwnedFd; 3]>) -> Result<Started, String> {
    let bundle = paths.bundle(container);
    let file = bundle.join(process);
    let read = |path: &Path| fs::read(path).map_err(|e| format!("read {}: {e}", path.display()));
    let parse = |e: serde_json::Error| format!("parse {}: {e}", file.display());
    let extra: ExecFile = serde_json::from_slice(&read(&file)?).map_err(parse)?;
    let config: Config = serde_json::from_slice(&read(&bundle.join("config.json"))?).map_err(|e| e.to_string())?;
    let payload = Payload { seccomp: config.linux.seccomp, capabilities: extra.capabilities.map(only).transpose()? };
    let mut builder = ContainerBuilder::new(container.to_owned(), SyscallType::default())
        .with_executor(payload)
        .with_root_path(paths.oci())
        .map_err(|e| describe(&e))?;
    let mut console = None;
    match streams {
        Some([stdin, stdout, stderr]) => builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr),
        None => {
            let socket = Console::open(&bundle)?;
            builder = builder.with_console_socket(Some(socket.path.clone()));
            console = Some(socket);
        }
    }
    let tenant = builder.as_tenant().with_process(Some(&file)).with_detach(true);
    let pid = tenant.build().map_err(|e| describe(&e));
    let _ = fs::remove_file(&file);
    let pid = Pid::from_raw(pid?.as_raw());
    let terminal = console.map(|c| c.receive()).transpose()?;
    Ok(Started { pid, terminal })
}

/// Capability sets for exactly these: nothing inheritable, nothing ambient (CVE-2022-29162).
fn only(names: Vec<String>) -> Result<LinuxCapabilities, String> {
    let set: Capabilities = serde_json::from_value(names.into()).map_err(|e| format!("capabilities: {e}"))?;
    let mut sets = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .build()
        .map_err(|e| e.to_string())?;
    sets.set_inheritable(None);
    sets.set_ambient(None);
    Ok(sets)
}

/// The socket on which libcontainer hands over a terminal's master side.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn open(bundle: &Path) -> Result<Console, String> {
        let path = bundle.join("console.sock");
        let open = || -> io::Result<UnixListener> {
            let _ = fs::remove_file(&path);
            // Relative to the bundle: a socket's path may hold 107 bytes, a bundle's own is longer. The shim is
            // single-threaded, so its working directory is its own to change.
            std::env::set_current_dir(bundle)?;
            let listener = UnixListener::bind("console.sock");
            std::env::set_current_dir("/")?;
            listener
        };
        let listener = open().map_err(|e| format!("listen on {}: {e}", path.display()))?;
        Ok(Console { listener, path })
    }

    /// libcontainer has sent the descriptor before it reports success.
    fn receive(self) -> Result<OwnedFd, String> {
        let receive = || -> io::Result<OwnedFd> {
            self.listener.set_nonblocking(true)?;
            let (socket, _) = self.listener.accept()?;
            let mut inbox = Inbox::default();
            inbox.fill(socket.as_fd())?;
            inbox.fds.pop().ok_or_else(|| io::Error::other("no descriptor came with it"))
        };
        let master = receive().map_err(|e| format!("receive the terminal: {e}"));
        let _ = fs::remove_file(&self.path);
        master
    }
}

/// The whole chain of an error's causes on one line.
fn describe(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn write_exit(bundle: &Path, exit: &Exit) -> io::Result<()> {
    let tmp = bundle.join("exit.tmp");
    fs::write(&tmp, serde_json::to_vec(exit)?)?;
    fs::rename(&tmp, bundle.join(EXIT_FILE))
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn readable(fd: BorrowedFd) -> bool {
    let mut set = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut set, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// A machine may refuse to lower a score (no CAP_SYS_RESOURCE): the process then keeps what it has.
pub fn set_oom_score(pid: Pid, score: i32) {
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
}

/// Sets a terminal's size.
pub fn set_window(terminal: BorrowedFd, columns: u16, rows: u16) -> io::Result<()> {
    use nix::libc;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which `size` is.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &size) })?;
    Ok(())
}

/// Reads a small file whole, for what the pod's directory holds.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}
