//! The per-pod process that outlives the agent: `minik8s shim --dir <run-dir>/pods/<uid>`.
//!
//! Read in this order: `proto` (what is said on the socket), `sandbox` (the pod's namespaces), `container`
//! (libcontainer, streams, exits), `executor` (the last steps inside a container), `log`, `trace`, and
//! here the loop.
//!
//! Invariants: one thread, ever, because libcontainer forks and changes the working directory; nothing
//! that can grow without bound; every exit is on disk before anyone hears of it; what an agent's absence
//! leaves unsaid is asked for again by `Status`.

mod container;
mod executor;
mod log;
pub(crate) mod proto;
mod sandbox;
mod server;
mod trace;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, fcntl};

pub(crate) use container::set_window;
pub(crate) use executor::to_install_filter;
pub(crate) use sandbox::{NAMESPACES, SHM, own_namespaces};

use crate::runtime::{Cgroups, SandboxSpec};

/// File names in a pod's directory, for both sides.
pub(crate) const SANDBOX_FILE: &str = "sandbox.json";
pub(crate) const SOCKET: &str = "shim.sock";
pub(crate) const PID_FILE: &str = "shim.pid";
/// What the shim and libcontainer had to say.
pub(crate) const LOG_FILE: &str = "shim.log";

/// A shim is small and its pod dies with it: the kernel should look elsewhere first.
const OOM_SCORE: &str = "-998";

/// The hidden subcommand `minik8s shim <args>`; `args` begins behind the word `shim`. Its standard input is the
/// socket to listen on. Call it before any thread or async runtime exists.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("shim: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let (dir, cgroup) = parse(args)?;
    let listener = take_listener()?;
    detach();
    let errors = trace::Errors::install(&dir.join(LOG_FILE))?;
    let spec: SandboxSpec = serde_json::from_slice(&container::read_small(&dir.join(SANDBOX_FILE))?)?;
    let cgroups = Cgroups::detect()?;
    cgroups.join(&cgroup);
    fs::write(dir.join(PID_FILE), std::process::id().to_string())?;
    // The agent's first question gets the answer, good or bad.
    let ready = sandbox::set_up(&dir, &spec).map_err(|e| format!("make the pod's namespaces: {e}"));
    server::Server::new(dir, cgroups, errors, ready)?.serve(listener)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> io::Result<(PathBuf, String)> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: shim --dir DIR --cgroup PATH");
    let (mut dir, mut cgroup) = (None, None);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(usage)?;
        match flag.to_str() {
            Some("--dir") => dir = Some(PathBuf::from(value)),
            Some("--cgroup") => cgroup = value.into_string().ok(),
            _ => return Err(usage()),
        }
    }
    dir.filter(|d| d.is_absolute()).zip(cgroup).ok_or_else(usage)
}

/// Moves the socket away from standard input, which children would inherit.
fn take_listener() -> io::Result<UnixListener> {
    use std::os::fd::FromRawFd;
    let stdin = io::stdin();
    let high = fcntl(&stdin, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor; nobody else owns it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(high) });
    let null = fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Leaves the agent's session and adopts the orphans of its own children.
fn detach() {
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let _ = nix::sys::prctl::set_name(c"minik8s-shim");
    let _ = std::env::set_current_dir("/");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Without CAP_SYS_RESOURCE the score cannot be lowered; the agent says so once.
    let _ = fs::write(Path::new("/proc/self/oom_score_adj"), OOM_SCORE);
}
