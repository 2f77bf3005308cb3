//! The loop: one `poll` over the socket, the connections, the children and their streams.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::container::{self, Container, Paths};
use super::log::Stream;
use super::proto::{Answer, Create, Inbox, OnHangup, Request, ShimContainer, send};
use super::trace::Tail;
use crate::runtime::{Cgroups, RunState};

/// The agent keeps one connection, and one for each running exec and attach.
const MAX_CONNECTIONS: usize = 256;
/// A killed process is gone by then, or stuck in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const KILL_PAUSE: Duration = Duration::from_millis(1);

/// Milliseconds between two looks at clients that leave their output unread.
const RECHECK: u16 = 1000;

struct Connection {
    socket: UnixStream,
    inbox: Inbox,
    subscribed: bool,
}

/// A process started in a container.
struct Exec {
    connection: u64,
    on_hangup: OnHangup,
}

pub struct Server {
    dir: PathBuf,
    cgroups: Cgroups,
    errors: Tail,
    ready: Result<Option<Pid>, String>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    execs: HashMap<Pid, Exec>,
    children: SignalFd,
    shutdown: bool,
}

/// What a ready descriptor belongs to.
enum Source {
    Listener,
    Children,
    Connection(u64),
    Output(String, usize),
    Input(String, usize),
    InputRoom(String),
    ClientRoom,
}

impl Server {
    pub fn new(dir: PathBuf, cgroups: Cgroups, errors: Tail, ready: Result<Option<Pid>, String>) -> io::Result<Server> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Server {
            dir,
            cgroups,
            errors,
            ready,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            children,
            shutdown: false,
        })
    }

    /// Serves until it is told to shut down.
    pub fn serve(mut self, listener: UnixListener) -> io::Result<()> {
        while !self.shutdown {
            for source in self.wait(&listener)? {
                self.dispatch(&listener, source);
            }
            for container in self.containers.values_mut() {
                container.flush_attached();
            }
        }
        self.end();
        Ok(())
    }

    fn wait(&self, listener: &UnixListener) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Children];
        let mut set = vec![input(listener.as_fd()), input(self.children.as_fd())];
        for (id, connection) in &self.connections {
            sources.push(Source::Connection(*id));
            set.push(input(connection.socket.as_fd()));
        }
        for (name, container) in &self.containers {
            let readable = if container.held_back() { 0 } else { container.outputs.len() };
            for (index, stream) in container.outputs.iter().enumerate().take(readable).rev() {
                sources.push(Source::Output(name.clone(), index));
                set.push(input(stream.fd.as_fd()));
            }
            if let Some(fd) = container.blocked_input() {
                sources.push(Source::InputRoom(name.clone()));
                set.push(PollFd::new(fd, PollFlags::POLLOUT));
            }
            for (index, client) in container.attached.iter().enumerate() {
                if let Some(stdin) = client.stdin.as_ref().filter(|_| container.accepts_input()) {
                    sources.push(Source::Input(name.clone(), index));
                    set.push(input(stdin.as_fd()));
                }
                for fd in client.blocked() {
                    sources.push(Source::ClientRoom);
                    set.push(PollFd::new(fd, PollFlags::POLLOUT));
                }
            }
        }
        // A client that does not read is looked at again without being heard of.
        let held_back = self.containers.values().any(Container::held_back);
        match poll(&mut set, if held_back { RECHECK.into() } else { PollTimeout::NONE }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<PollFlags> = set.iter().map(|p| p.revents().unwrap_or(PollFlags::empty())).collect();
        Ok(sources.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).map(|(s, _)| s).collect())
    }

    fn dispatch(&mut self, listener: &UnixListener, source: Source) {
        match source {
            Source::Listener => self.accept(listener),
            Source::Children => {
                while let Ok(Some(_)) = self.children.read_signal() {}
                self.reap();
            }
            Source::Connection(id) => self.read_requests(id),
            Source::Output(name, index) => {
                let now = Timestamp::now();
                if let Some(container) = self.containers.get_mut(&name) {
                    container.read_output(index, now);
                }
            }
            Source::Input(name, index) => {
                if let Some(container) = self.containers.get_mut(&name) {
                    container.read_input(index);
                }
            }
            Source::InputRoom(name) => {
                if let Some(container) = self.containers.get_mut(&name) {
                    container.write_input();
                }
            }
            // Flushed after every round.
            Source::ClientRoom => {}
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((socket, _)) = listener.accept() {
            if self.connections.len() >= MAX_CONNECTIONS || socket.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_connection += 1;
            let connection = Connection { socket, inbox: Inbox::default(), subscribed: false };
            self.connections.insert(self.next_connection, connection);
        }
    }

    fn read_requests(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.inbox.fill(connection.socket.as_fd()) {
            Ok(true) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.hang_up(id),
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match connection.inbox.next::<Request>() {
                Ok(Some(request)) => {
                    let fds = std::mem::take(&mut connection.inbox.fds);
                    self.answer(id, request, fds);
                }
                Ok(None) => break,
                Err(_) => return self.hang_up(id),
            }
        }
        give_memory_back();
    }

    fn answer(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let mark = self.errors.mark();
        let result = match request {
            Request::Ready => self.ready.as_ref().map(|_| None).map_err(Clone::clone),
            Request::Create(spec) => self.create(spec).map(|()| None),
            Request::Start { container } => {
                let dir = self.dir.clone();
                self.find(&container).and_then(|c| c.start(&Paths { pod: &dir }, Timestamp::now())).map(|()| None)
            }
            Request::Signal { container, signal } => self.signal(&container, signal).map(|()| None),
            Request::Remove { container } => self.remove(&container).map(|()| None),
            Request::Status => {
                let answer = Answer::Status { containers: self.status() };
                return self.send(id, &answer, None);
            }
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.subscribed = true;
                }
                Ok(None)
            }
            Request::Exec { container, process, terminal, on_hangup } => {
                self.exec(id, &container, &process, fds, terminal, on_hangup)
            }
            Request::Attach { container, stdin, stdout, stderr } => {
                self.attach(id, &container, [stdin, stdout, stderr], fds).map(|()| None)
            }
            Request::Resize { container, columns, rows } => self.resize(&container, columns, rows).map(|()| None),
            Request::Shutdown => {
                self.shutdown = true;
                return;
            }
        };
        match result {
            Ok(fd) => self.send(id, &Answer::Done, fd.as_ref()),
            Err(message) => {
                let causes = self.errors.since(mark);
                let message = if causes.is_empty() { message } else { format!("{message} ({causes})") };
                self.send(id, &Answer::Failed { message }, None);
            }
        }
    }

    fn find(&mut self, container: &str) -> Result<&mut Container, String> {
        self.containers.get_mut(container).ok_or_else(|| format!("there is no container {container}"))
    }

    fn create(&mut self, spec: Create) -> Result<(), String> {
        if let Err(e) = &self.ready {
            return Err(e.clone());
        }
        if self.containers.contains_key(&spec.container) {
            return Err(format!("container {} exists", spec.container));
        }
        let name = spec.container.clone();
        let cgroup = spec.cgroup.clone();
        match Container::create(&Paths { pod: &self.dir }, spec) {
            Ok(container) => {
                self.containers.insert(name, container);
                Ok(())
            }
            Err(e) => {
                // libcontainer cleans up, but not what it trips over itself.
                self.clean(&name, &cgroup);
                Err(e)
            }
        }
    }

    fn signal(&mut self, container: &str, signal: i32) -> Result<(), String> {
        let Some(pid) = self.find(container)?.pid else { return Ok(()) };
        let signal = Signal::try_from(signal).map_err(|_| format!("signal {signal} does not exist"))?;
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(format!("kill {pid}: {e}")),
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        let Some(container) = self.containers.get(name) else { return Ok(()) };
        let cgroup = container.spec.cgroup.clone();
        self.stop(name, &cgroup)?;
        self.containers.remove(name);
        self.clean(name, &cgroup);
        Ok(())
    }

    /// Kills until the container's first process has been reaped.
    fn stop(&mut self, name: &str, cgroup: &str) -> Result<(), String> {
        let deadline = Instant::now() + KILL_DEADLINE;
        while let Some(pid) = self.containers.get(name).and_then(|c| c.pid) {
            let _ = kill(pid, Signal::SIGKILL);
            self.cgroups.kill_once(cgroup);
            // Also exec'd processes: a pid namespace does not end before they are reaped.
            self.reap();
            if Instant::now() > deadline {
                return Err(format!("process {pid} does not die"));
            }
            std::thread::sleep(KILL_PAUSE);
        }
        Ok(())
    }

    fn clean(&mut self, name: &str, cgroup: &str) {
        if let Err(e) = self.cgroups.remove(cgroup) {
            tracing::error!(error = %e, "a cgroup stays behind");
        }
        let state = Paths { pod: &self.dir }.oci().join(name);
        match std::fs::remove_dir_all(&state) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %state.display(), error = %e, "cannot remove")
            }
            _ => {}
        }
    }

    fn status(&self) -> Vec<ShimContainer> {
        let brief = |(name, c): (&String, &Container)| ShimContainer {
            container: name.clone(),
            pid: c.pid.map(Pid::as_raw),
            state: c.state.clone(),
        };
        self.containers.iter().map(brief).collect()
    }

    fn exec(
        &mut self,
        connection: u64,
        name: &str,
        process: &str,
        fds: Vec<OwnedFd>,
        terminal: bool,
        on_hangup: OnHangup,
    ) -> Result<Option<OwnedFd>, String> {
        let target = self.find(name)?;
        if !matches!(target.state, RunState::Running { .. }) {
            return Err(format!("container {name} is not running"));
        }
        let oom_score_adj = target.spec.oom_score_adj;
        let streams = match terminal {
            true => None,
            false => Some(<[OwnedFd; 3]>::try_from(fds).map_err(|_| "three streams were expected".to_owned())?),
        };
        let started = container::exec(&Paths { pod: &self.dir }, name, process, streams)?;
        container::set_oom_score(started.pid, oom_score_adj);
        self.execs.insert(started.pid, Exec { connection, on_hangup });
        Ok(started.terminal)
    }

    fn attach(&mut self, connection: u64, name: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), String> {
        let container = self.find(name)?;
        if matches!(container.state, RunState::Exited(_)) {
            return Err(format!("container {name} has exited"));
        }
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        let (stdin, stdout, stderr) = (next(wanted[0]), next(wanted[1]), next(wanted[2]));
        let outputs = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        let outputs = outputs.into_iter().filter_map(|(stream, fd)| Some((stream, fd?))).collect();
        container.attach(connection, stdin, outputs).map_err(|e| format!("attach: {e}"))
    }

    fn resize(&mut self, name: &str, columns: u16, rows: u16) -> Result<(), String> {
        let container = self.find(name)?;
        let terminal = container.terminal().ok_or_else(|| format!("container {name} has no terminal"))?;
        container::set_window(terminal, columns, rows).map_err(|e| format!("resize: {e}"))
    }

    /// Takes every child that has ended.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let (Some(pid), WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = (status.pid(), status) else {
                continue;
            };
            if let Some(exec) = self.execs.remove(&pid) {
                self.send(exec.connection, &Answer::Ended { code: exit_code(status) }, None);
                continue;
            }
            let name = self.containers.iter().find(|(_, c)| c.pid == Some(pid)).map(|(name, _)| name.clone());
            if let Some(name) = name {
                self.container_ended(&name, status);
            }
        }
    }

    fn container_ended(&mut self, name: &str, status: WaitStatus) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let clients: Vec<u64> = container.attached.iter().map(|a| a.connection).collect();
        container.finish(&Paths { pod: &self.dir }, &self.cgroups, status, Timestamp::now());
        let answer = Answer::Exited {
            container: name.to_owned(),
            name: container.spec.name.clone(),
            attempt: container.spec.attempt,
        };
        let subscribers: Vec<u64> = self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
        for id in subscribers {
            self.send(id, &answer, None);
        }
        for id in clients {
            self.send(id, &Answer::Ended { code: exit_code(status) }, None);
        }
        give_memory_back();
    }

    fn send(&mut self, id: u64, answer: &Answer, fd: Option<&OwnedFd>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let fds: Vec<i32> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        if send(connection.socket.as_fd(), answer, &fds).is_err() {
            self.hang_up(id);
        }
    }

    fn hang_up(&mut self, id: u64) {
        self.connections.remove(&id);
        for (pid, exec) in &self.execs {
            if exec.connection == id && exec.on_hangup == OnHangup::Kill {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        for container in self.containers.values_mut() {
            container.attached.retain(|a| a.connection != id);
        }
    }

    fn end(&mut self) {
        let names: Vec<String> = self.containers.keys().cloned().collect();
        for name in names {
            if let Err(e) = self.remove(&name) {
                tracing::error!(container = %name, error = %e, "left behind");
            }
        }
        if let Ok(Some(holder)) = self.ready {
            let _ = kill(holder, Signal::SIGKILL);
            let _ = waitpid(holder, None);
        }
    }
}

fn input(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn exit_code(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 255,
    }
}

/// A shim works for a moment and then sleeps for hours: what libcontainer needed goes back to the kernel.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
