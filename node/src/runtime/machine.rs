//! What this machine can do, looked at once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::cgroup::Cgroups;
use super::oci::ALL_CAPABILITIES;

/// Device directories that every container gets anew.
const OWN_DEVICES: [&str; 5] = ["pts", "shm", "mqueue", "fd", "console"];
/// More devices than this are not handed to one container.
const MAX_DEVICES: usize = 4096;

/// A device of the node, for privileged containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    pub path: PathBuf,
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub cgroups: Cgroups,
    /// System-call filters exist.
    pub seccomp: bool,
    /// No process started here can have more than these.
    pub bounding: BTreeSet<String>,
}

impl Machine {
    /// Looks, and says once what will be missing.
    pub fn look() -> io::Result<Machine> {
        let status = fs::read_to_string("/proc/self/status")?;
        let bounding = mask(&status, "CapBnd:");
        let machine = Machine {
            cgroups: Cgroups::detect()?,
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            bounding,
        };
        let missing: Vec<&str> =
            ["cpu", "memory", "pids"].into_iter().filter(|c| !machine.cgroups.supports(c)).collect();
        if !missing.is_empty() {
            tracing::warn!(
                controllers = missing.join(","),
                "cgroup controllers are missing: such limits are not enforced"
            );
        }
        if !machine.seccomp {
            tracing::warn!("the kernel has no seccomp: containers run without a system-call filter");
        }
        if !mask(&status, "CapEff:").contains("CAP_SYS_RESOURCE") {
            tracing::warn!("no CAP_SYS_RESOURCE: processes' OOM scores cannot be lowered");
        }
        Ok(machine)
    }
}

fn mask(status: &str, field: &str) -> BTreeSet<String> {
    let bits = status.lines().find_map(|l| l.strip_prefix(field)).and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    let bits = bits.unwrap_or(0);
    ALL_CAPABILITIES.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, c)| (*c).to_owned()).collect()
}

/// Every device under /dev.
pub fn host_devices() -> Vec<HostDevice> {
    let mut out = Vec::new();
    let mut dirs = vec![PathBuf::from("/dev")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if out.len() >= MAX_DEVICES || OWN_DEVICES.iter().any(|own| name == *own) {
                continue;
            }
            // Not followed: a link is no device, and its target is found on its own.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = match meta.file_type() {
                t if t.is_dir() => {
                    dirs.push(path);
                    continue;
                }
                t if t.is_char_device() => 'c',
                t if t.is_block_device() => 'b',
                _ => continue,
            };
            let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
            out.push(HostDevice { path, kind, major, minor, mode: meta.mode() });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_masks_are_read() {
        let got = mask("Name:\tx\nCapBnd:\t0000000000000003\n", "CapBnd:");
        assert_eq!(got, BTreeSet::from(["CAP_CHOWN".to_owned(), "CAP_DAC_OVERRIDE".to_owned()]));
        assert_eq!(mask("CapBnd:\t000001ffffffffff\n", "CapBnd:").len(), ALL_CAPABILITIES.len());
    }

    #[test]
    fn devices_have_numbers() {
        let null = host_devices().into_iter().find(|d| d.path == Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), ('c', 1, 3));
    }
}
