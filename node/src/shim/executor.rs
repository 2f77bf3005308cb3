//! The last steps inside a container before its command takes over.
//!
//! libcontainer forgets the system-call filter for exec'd processes, and leaves them the shim's signal
//! dispositions; this executor puts both right, for first processes and exec'd ones alike.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

const LAST_SIGNAL: i32 = 64;

/// Runs the command of an OCI process.
#[derive(Clone, Default)]
pub struct Payload {
    /// Only for exec'd processes: libcontainer installs a first process's filter itself.
    pub seccomp: Option<LinuxSeccomp>,
    /// The capabilities to end with, where the process was given more so that it could install its filter.
    pub capabilities: Option<LinuxCapabilities>,
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = arguments(spec).ok_or(ExecutorError::InvalidArg)?;
        let argv: Vec<CString> = args
            .iter()
            .map(|a| CString::new(a.as_bytes()).map_err(|_| ExecutorError::InvalidArg))
            .collect::<Result<_, _>>()?;
        let program = find(&args[0], path_variable(spec)).map_err(ExecutorError::Other)?;
        let program = CString::new(program.as_os_str().as_encoded_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        reset_signals().map_err(|e| ExecutorError::Other(format!("reset signals: {e}")))?;
        if let Some(filter) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(filter)
                .map_err(|e| ExecutorError::Other(format!("install the system-call filter: {e}")))?;
        }
        if let Some(capabilities) = &self.capabilities {
            let syscall = libcontainer::syscall::syscall::create_syscall();
            libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
                .map_err(|e| ExecutorError::Other(format!("drop capabilities: {e}")))?;
        }
        // The environment is the process's own by now: libcontainer has replaced it.
        let error = nix::unistd::execv(&program, &argv).err().unwrap_or(Errno::UnknownErrno);
        Err(ExecutorError::Other(format!("exec {:?}: {}", args[0], error.desc())))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let args = arguments(spec)
            .ok_or_else(|| ExecutorValidationError::ArgValidationError("there is no command to run".to_owned()))?;
        find(&args[0], path_variable(spec)).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }
}

fn arguments(spec: &Spec) -> Option<&Vec<String>> {
    spec.process().as_ref()?.args().as_ref().filter(|args| !args.is_empty())
}

fn path_variable(spec: &Spec) -> &str {
    let env = spec.process().as_ref().and_then(|p| p.env().as_ref());
    env.and_then(|env| env.iter().rev().find_map(|e| e.strip_prefix("PATH="))).unwrap_or_default()
}

/// As a shell would look for it, and says what a user of the original reads in such an event.
fn find(program: &str, path: &str) -> Result<PathBuf, String> {
    let describe = |what: &str| format!("exec: \"{program}\": {what}");
    if program.contains('/') {
        return match executable(Path::new(program)) {
            Ok(()) => Ok(PathBuf::from(program)),
            Err(Errno::ENOENT) => Err(format!("exec: \"{program}\": stat {program}: no such file or directory")),
            Err(Errno::EISDIR) => Err(describe("is a directory")),
            Err(_) => Err(describe("permission denied")),
        };
    }
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(program);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(describe(if denied { "permission denied" } else { "executable file not found in $PATH" }))
}

fn executable(path: &Path) -> Result<(), Errno> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(path).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    if meta.is_dir() {
        return Err(Errno::EISDIR);
    }
    // Whether this very user may run it, execve decides; a file nobody may run is told apart here.
    if meta.permissions().mode() & 0o111 == 0 { Err(Errno::EACCES) } else { Ok(()) }
}

/// The shim blocks SIGCHLD and ignores SIGPIPE; both outlive execve unless they are undone.
fn reset_signals() -> nix::Result<()> {
    // By system call: glibc keeps two signals to itself and would leave them as some parent ignored them.
    // An all-zero kernel sigaction is the default disposition, whatever the architecture's layout.
    let default = [0u64; 8];
    for signal in (1..=LAST_SIGNAL).filter(|s| !matches!(*s, libc::SIGKILL | libc::SIGSTOP)) {
        // SAFETY: the kernel reads a sigaction no longer than `default`; no old one is asked for; 8 is its mask's size.
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize)
        };
        Errno::result(result)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// What an exec'd process needs beside its own capabilities to install a filter without no_new_privs: the right
/// to, and the right to give that right up again.
pub fn to_install_filter(own: &BTreeSet<String>) -> BTreeSet<String> {
    own.iter().cloned().chain(["CAP_SYS_ADMIN".to_owned(), "CAP_SETPCAP".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find("sh", "/nowhere:/bin"), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(find("/bin/sh", ""), Ok(PathBuf::from("/bin/sh")));
        for (program, want) in [
            ("no-such-program", "exec: \"no-such-program\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
        ] {
            assert_eq!(find(program, "/bin:/usr/bin"), Err(want.to_owned()));
        }
    }
}
