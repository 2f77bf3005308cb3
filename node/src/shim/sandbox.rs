//! A pod's namespaces: made by the shim, pinned by bind mounts, entered by each container.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid, fork, pivot_root};

use crate::runtime::SandboxSpec;

/// Under the pod's directory.
pub const NAMESPACES: &str = "ns";
/// The pod's /dev/shm: POSIX shared memory belongs to the IPC namespace, so containers share both.
pub const SHM: &str = "shm";

/// Which namespaces the pod has of its own, by the name of their file.
pub fn own_namespaces(spec: &SandboxSpec) -> Vec<(&'static str, CloneFlags)> {
    let mut out = vec![];
    if !spec.host_network {
        out.push(("net", CloneFlags::CLONE_NEWNET));
        // With the host's network a pod also has the host's name.
        out.push(("uts", CloneFlags::CLONE_NEWUTS));
    }
    if !spec.host_ipc {
        out.push(("ipc", CloneFlags::CLONE_NEWIPC));
    }
    out
}

/// Makes and pins everything the pod's containers share. `Some` is the process that holds a shared pid namespace.
pub fn set_up(dir: &Path, spec: &SandboxSpec) -> io::Result<Option<Pid>> {
    fs::create_dir_all(dir.join(NAMESPACES))?;
    let own = own_namespaces(spec);
    let home: Vec<fs::File> = own.iter().map(|(name, _)| fs::File::open(proc_ns(name))).collect::<io::Result<_>>()?;
    unshare(own.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag))?;
    let result = inside(dir, spec, &own);
    // Back to where the shim came from, whatever happened inside.
    for (file, (_, flag)) in home.iter().zip(&own) {
        setns(file, *flag)?;
    }
    result?;
    if !spec.host_ipc {
        make_shm(&dir.join(SHM))?;
    }
    if spec.share_process_namespace && !spec.host_pid { pid_holder(dir).map(Some) } else { Ok(None) }
}

fn inside(dir: &Path, spec: &SandboxSpec, own: &[(&'static str, CloneFlags)]) -> io::Result<()> {
    if !spec.host_network {
        loopback_up()?;
        fs::write("/proc/sys/kernel/hostname", &spec.hostname)?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(sysctl_path(name)?);
        fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("sysctl {name}={value}: {e}")))?;
    }
    for (name, _) in own {
        let pin = dir.join(NAMESPACES).join(name);
        fs::File::create(&pin)?;
        mount(Some(proc_ns(name).as_str()), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

fn proc_ns(name: &str) -> String {
    format!("/proc/self/ns/{name}")
}

/// `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/x`; never a way out of /proc/sys.
fn sysctl_path(name: &str) -> io::Result<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.split('/').all(sound) {
        Ok(path)
    } else {
        Err(io::Error::other(format!("sysctl name \"{name}\" is malformed")))
    }
}

fn loopback_up() -> io::Result<()> {
    use nix::libc;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid; it is filled with a terminated name before use.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is, and keeps no pointer to it.
    Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}

fn make_shm(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("shm"), path, Some("tmpfs"), flags, Some("mode=1777,size=67108864"))?)
}

/// Forks the first process of a shared pid namespace: it adopts and reaps orphans, and does nothing else.
fn pid_holder(dir: &Path) -> io::Result<Pid> {
    let home = fs::File::open(proc_ns("pid"))?;
    let jail = dir.join("jail");
    fs::create_dir_all(&jail)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    // The child says over this pipe that its jail is closed: no container may see it before.
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: the shim has one thread, so the child may go on running any code.
    let child = match unsafe { fork() }? {
        ForkResult::Child => hold(&jail, writer),
        ForkResult::Parent { child } => child,
    };
    setns(&home, CloneFlags::CLONE_NEWPID)?;
    drop(writer);
    let mut word = [0u8; 1];
    if nix::unistd::read(&reader, &mut word)? == 0 {
        return Err(io::Error::other("the holder of the shared pid namespace could not close its jail"));
    }
    let pin = dir.join(NAMESPACES).join("pid");
    fs::File::create(&pin)?;
    mount(Some(format!("/proc/{child}/ns/pid").as_str()), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(child)
}

/// The holder's whole life. A container with CAP_SYS_PTRACE can look through `/proc/1`: there must be
/// no file, no capability and no root directory of the node behind it.
fn hold(jail: &Path, ready: std::os::fd::OwnedFd) -> ! {
    let close_jail = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("jail"), jail, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0,mode=000"))?;
        nix::unistd::chdir(jail)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")?;
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring a signal installs no handler code. The kernel then reaps this process's children itself.
        unsafe { sigaction(Signal::SIGCHLD, &ignore) }?;
        drop_capabilities()
    };
    if close_jail().is_err() || nix::unistd::write(&ready, b"1").is_err() {
        // SAFETY: ends this process at once; nothing of the parent's is flushed twice.
        unsafe { nix::libc::_exit(1) }
    }
    // SAFETY: closes every descriptor of this process; nothing below uses one.
    unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    loop {
        nix::unistd::pause();
    }
}

fn drop_capabilities() -> nix::Result<()> {
    use nix::libc;
    for capability in 0..=63 {
        // SAFETY: PR_CAPBSET_DROP takes a number; one the kernel does not know is answered with EINVAL.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // Version 3 of the header, this process, and two empty sets of 32 bits each.
    let header: [u32; 2] = [0x2008_0522, 0];
    let data = [0u32; 6];
    // SAFETY: both pointers are to arrays of the layout capset(2) reads.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_stay_below_proc_sys() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        for bad in ["", "../kernel", "/etc/passwd", "a..b", "net/../../x", "net/./x"] {
            assert!(sysctl_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_namespaces_are_not_made() {
        let names = |spec: &SandboxSpec| own_namespaces(spec).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(names(&SandboxSpec::default()), ["net", "uts", "ipc"]);
        assert_eq!(names(&SandboxSpec { host_network: true, ..Default::default() }), ["ipc"]);
        assert_eq!(names(&SandboxSpec { host_ipc: true, ..Default::default() }), ["net", "uts"]);
    }
}
