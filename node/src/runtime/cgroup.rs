//! Control groups, versions 1 and 2 and both at once: joining, limits, the kill of what is left, removal.
//!
//! libcontainer places containers; this is for what lies around them (the pod's own group, the shims'
//! group), and for what must work without a shim.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::types::Resources;

/// Killed processes leave their group within this, or are stuck in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const KILL_PAUSE: Duration = Duration::from_millis(2);

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// `cpu`, `memory`, `name=systemd`; empty for version 2.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    fn v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    pub fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
}

/// Every hierarchy of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    pub fn detect() -> io::Result<Cgroups> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Cgroups {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            let controllers = match kind {
                "cgroup2" => Vec::new(),
                "cgroup" => options.split(',').filter(|o| !is_mount_option(o)).map(str::to_owned).collect(),
                _ => continue,
            };
            let hierarchy = Hierarchy { mount: PathBuf::from(mount), controllers };
            // The same hierarchy may be mounted again elsewhere; the first is the system's own.
            if mount.starts_with("/sys/fs/cgroup")
                && !hierarchies.iter().any(|h| h.controllers == hierarchy.controllers)
            {
                hierarchies.push(hierarchy);
            }
        }
        Cgroups { hierarchies }
    }

    /// Whether version 2 alone is in use, and containers get a cgroup namespace.
    pub fn unified(&self) -> bool {
        self.hierarchies.iter().all(Hierarchy::v2)
    }

    /// Version 1's hierarchies, to be shown read-only inside containers.
    pub fn v1(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|h| !h.v2())
    }

    /// Whether limits of this kind can be set at all on this machine.
    pub fn supports(&self, controller: &str) -> bool {
        let v2 = || {
            let root = self.hierarchies.iter().find(|h| h.v2()).map(|h| h.mount.join("cgroup.controllers"));
            let text = root.and_then(|f| fs::read_to_string(f).ok()).unwrap_or_default();
            text.split_whitespace().any(|c| c == controller)
        };
        if self.unified() { v2() } else { self.hierarchies.iter().any(|h| h.has(controller)) }
    }

    /// Creates the group where there is a limit to set, and sets it. What this machine cannot do comes
    /// back as text: a limit that cannot be set must not keep a pod from running.
    pub fn limit(&self, path: &str, r: &Resources) -> Vec<String> {
        let mut refused = Vec::new();
        let unified = self.unified();
        for h in &self.hierarchies {
            let settings: Vec<(&str, String)> =
                if h.v2() { if unified { v2_settings(r) } else { Vec::new() } } else { v1_settings(h, r) };
            if settings.is_empty() {
                continue;
            }
            let dir = h.dir(path);
            if let Err(e) = create(h, path) {
                refused.push(format!("create {}: {e}", dir.display()));
                continue;
            }
            for (file, value) in settings {
                if let Err(e) = fs::write(dir.join(file), &value) {
                    refused.push(format!("write {value} to {}: {e}", dir.join(file).display()));
                }
            }
        }
        refused
    }

    /// Moves this process into `path` in every hierarchy, as far as the machine allows.
    pub fn join(&self, path: &str) {
        for h in &self.hierarchies {
            let _ = create(h, path).and_then(|()| fs::write(h.dir(path).join("cgroup.procs"), "0"));
        }
    }

    /// Processes of the group and all groups below it.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids: Vec<i32> = self.hierarchies.iter().flat_map(|h| processes_below(&h.dir(path))).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to everything in the group, once.
    pub fn kill_once(&self, path: &str) -> bool {
        let pids = self.processes(path);
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        !pids.is_empty()
    }

    /// Kills until the group is empty. Blocks; `false` when something will not die.
    pub fn kill(&self, path: &str) -> bool {
        let deadline = Instant::now() + KILL_DEADLINE;
        while self.kill_once(path) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(KILL_PAUSE);
        }
        true
    }

    /// Removes the group and those below it. A group whose last process is still leaving is busy for a moment.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let deadline = Instant::now() + KILL_DEADLINE;
        for h in &self.hierarchies {
            let dir = h.dir(path);
            while let Err(e) = remove_tree(&dir) {
                if e.raw_os_error() != Some(nix::libc::EBUSY) || Instant::now() > deadline {
                    return Err(io::Error::new(e.kind(), format!("remove {}: {e}", dir.display())));
                }
                self.kill_once(path);
                std::thread::sleep(KILL_PAUSE);
            }
        }
        Ok(())
    }

    /// Removes a group that has no others below it and no processes in it; any other stays.
    pub fn remove_empty(&self, path: &str) {
        for h in &self.hierarchies {
            let _ = fs::remove_dir(h.dir(path));
        }
    }

    /// How many processes of the group the kernel has killed for want of memory.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let count = |file: PathBuf| -> Option<u64> {
            let text = fs::read_to_string(file).ok()?;
            text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok()
        };
        self.hierarchies
            .iter()
            .filter_map(|h| match h.v2() {
                true => count(h.dir(path).join("memory.events")),
                false if h.has("memory") => count(h.dir(path).join("memory.oom_control")),
                false => None,
            })
            .max()
            .unwrap_or(0)
    }
}

fn is_mount_option(option: &str) -> bool {
    matches!(option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix" | "nsdelegate" | "cpuset_v2_mode")
        || option.starts_with("release_agent=")
}

fn v1_settings(h: &Hierarchy, r: &Resources) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if h.has("cpu") {
        out.extend(r.cpu_shares.map(|v| ("cpu.shares", v.to_string())));
        if let Some(quota) = r.cpu_quota {
            out.push(("cpu.cfs_period_us", r.cpu_period.unwrap_or(100_000).to_string()));
            out.push(("cpu.cfs_quota_us", quota.to_string()));
        }
    }
    if h.has("memory") {
        out.extend(r.memory_limit.map(|v| ("memory.limit_in_bytes", v.to_string())));
    }
    if h.has("pids") {
        out.extend(r.pids_limit.map(|v| ("pids.max", v.to_string())));
    }
    out
}

fn v2_settings(r: &Resources) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    out.extend(r.cpu_shares.map(|v| ("cpu.weight", cpu_weight(v).to_string())));
    out.extend(r.cpu_quota.map(|q| ("cpu.max", format!("{q} {}", r.cpu_period.unwrap_or(100_000)))));
    out.extend(r.memory_limit.map(|v| ("memory.max", v.to_string())));
    out.extend(r.pids_limit.map(|v| ("pids.max", v.to_string())));
    out
}

/// Shares 2..=262144 onto weights 1..=10000, linearly, as OCI runtimes do.
pub fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Makes the directories of a group, each usable: version 1's cpusets start empty, and version 2's controllers
/// are handed down one level at a time.
fn create(h: &Hierarchy, path: &str) -> io::Result<()> {
    let mut dir = h.mount.clone();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        if h.v2() {
            for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io"] {
                let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
            }
        }
        let parent = dir.clone();
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) if h.has("cpuset") => {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    fs::write(dir.join(file), fs::read(parent.join(file))?)?;
                }
            }
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn processes_below(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids.extend(processes_below(&entry.path()));
        }
    }
    pids
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             99 31 0:29 /x /var/lib/y/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let got = Cgroups::parse(hybrid);
        let want: [(&str, &[&str]); 3] = [
            ("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
            ("/sys/fs/cgroup/systemd", &["name=systemd"]),
            ("/sys/fs/cgroup/unified", &[]),
        ];
        let got_pairs: Vec<_> =
            got.hierarchies.iter().map(|h| (h.mount.to_str().unwrap(), h.controllers.clone())).collect();
        assert_eq!(got_pairs.len(), want.len());
        for ((mount, controllers), (want_mount, want_controllers)) in got_pairs.iter().zip(want) {
            assert_eq!(
                (*mount, controllers.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (want_mount, want_controllers)
            );
        }
        assert!(!got.unified());
        assert!(Cgroups::parse("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate").unified());
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1), (1 << 40, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }
}
