//! Pods' shims: started, found again, taken apart.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::link::{self, Link, lost, refused};
use super::types::{RuntimeChange, RuntimeEvent, Sandbox, SandboxSpec, SandboxState};
use super::{Error, Runtime, rootfs};
use crate::shim::proto::{Answer, Request};
use crate::shim::{LOG_FILE, NAMESPACES, PID_FILE, SANDBOX_FILE};

/// A shim that has not ended its pod by then is killed, and its pod taken apart without it.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// A shim that does not answer this is treated as dead; it has nothing to do that takes so long.
const ADOPTION: Duration = Duration::from_secs(20);
const POD_DIR_MODE: u32 = 0o700;

impl Runtime {
    /// Starts the pod's shim, which makes and pins its namespaces. Fails if the pod has a sandbox already;
    /// after any other failure nothing is left of it.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        check_component("pod uid", &spec.uid)?;
        let dir = self.pod_dir(&spec.uid);
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create directory", parent))?;
        }
        match fs::DirBuilder::new().mode(POD_DIR_MODE).create(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let message = "it has a sandbox already".to_owned();
                return Err(Error::Invalid { subject: format!("pod {}", spec.uid), message });
            }
            result => result.map_err(Error::io("create directory", &dir))?,
        }
        match self.bring_up(&dir, spec).await {
            Ok(()) => Ok(self.sandbox(spec.clone(), SandboxState::Ready)),
            Err(e) => {
                if let Err(left) = self.remove_sandbox(&spec.uid).await {
                    tracing::warn!(pod = %spec.uid, error = %left, "a half-made sandbox stays until it is removed");
                }
                Err(e)
            }
        }
    }

    async fn bring_up(&self, dir: &Path, spec: &SandboxSpec) -> Result<(), Error> {
        let file = dir.join(SANDBOX_FILE);
        let bytes = serde_json::to_vec(spec).map_err(|e| Error::io("encode", &file)(e.into()))?;
        fs::write(&file, bytes).map_err(Error::io("write", &file))?;
        fs::create_dir_all(&spec.log_dir).map_err(Error::io("create directory", &spec.log_dir))?;
        for refusal in self.inner.machine.cgroups.limit(&self.pod_cgroup(spec), &spec.resources) {
            self.warn_once("pod limits", &refusal);
        }
        let listener = link::listen(dir).map_err(Error::io("listen in", dir))?;
        self.spawn_shim(dir, listener.into()).map_err(Error::io("start the shim of", dir))?;
        let subject = format!("pod {}/{}", spec.namespace, spec.name);
        let mut link = Link::connect(dir).map_err(Error::io("connect to the shim in", dir))?;
        let (answer, _) = link.call(&Request::Ready, &[]).await.map_err(|e| self.shim_died(e, dir, &subject))?;
        refused(answer, "start", &subject)?;
        self.watch(&spec.uid, link).await
    }

    fn spawn_shim(&self, dir: &Path, listener: std::os::fd::OwnedFd) -> io::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join(LOG_FILE))?;
        let mut child = tokio::process::Command::new(self.inner.shim.path())
            .arg0("minik8s")
            .arg("shim")
            .arg("--dir")
            .arg(dir)
            .arg("--cgroup")
            .arg(format!("{}/shims", self.inner.cgroup))
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(listener))
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()?;
        // Nothing is done with its end here: the connection tells. But while this agent lives it is the parent, and reaps.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    fn shim_died(&self, error: io::Error, dir: &Path, subject: &str) -> Error {
        if error.kind() == io::ErrorKind::TimedOut {
            return lost(error, subject, "start", subject);
        }
        let said = fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
        let message = format!("the shim ended at once: {}", said.trim());
        Error::Shim { operation: "start", subject: subject.to_owned(), message }
    }

    /// Turns what the shim pushes into events for as long as it lives.
    async fn watch(&self, uid: &str, mut link: Link) -> Result<(), Error> {
        if !self.watched().insert(uid.to_owned()) {
            return Ok(());
        }
        let subscribed = link.call(&Request::Subscribe, &[]).await;
        if let Err(e) = subscribed {
            self.watched().remove(uid);
            return Err(lost(e, uid, "watch", uid));
        }
        let (runtime, uid) = (self.clone(), uid.to_owned());
        tokio::spawn(async move {
            while let Ok(Some(answer)) = link.next().await {
                if let Answer::Exited { name, attempt, .. } = answer {
                    runtime.publish(&uid, RuntimeChange::Exited { name, attempt });
                }
            }
            runtime.watched().remove(&uid);
            // A sandbox that has been removed is no loss.
            if runtime.pod_dir(&uid).exists() {
                runtime.publish(&uid, RuntimeChange::ShimLost);
            }
        });
        Ok(())
    }

    fn publish(&self, uid: &str, what: RuntimeChange) {
        // Without a listener there is nobody to tell; `status` has it all.
        let _ = self.inner.events.send(RuntimeEvent { pod_uid: uid.to_owned(), what });
    }

    /// Every pod this node has anything of: after a restart of the agent, those to adopt and those to remove.
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, Error> {
        let root = self.inner.config.run_dir.join("pods");
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("read directory", &root)(e)),
        };
        let mut out = Vec::new();
        for entry in entries.flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            let spec = self.read_spec(&uid).unwrap_or_else(|| SandboxSpec { uid: uid.clone(), ..Default::default() });
            let state = self.adopt(&uid).await;
            out.push(self.sandbox(spec, state));
        }
        Ok(out)
    }

    async fn adopt(&self, uid: &str) -> SandboxState {
        let attempt = async {
            let mut link = Link::connect(&self.pod_dir(uid)).ok()?;
            match link.call(&Request::Ready, &[]).await.ok()?.0 {
                Answer::Done => self.watch(uid, link).await.ok(),
                _ => None,
            }
        };
        match tokio::time::timeout(ADOPTION, attempt).await {
            Ok(Some(())) => SandboxState::Ready,
            _ => SandboxState::Dead,
        }
    }

    fn sandbox(&self, spec: SandboxSpec, state: SandboxState) -> Sandbox {
        let netns = (!spec.host_network).then(|| self.netns_path(&spec.uid));
        Sandbox { uid: spec.uid.clone(), spec, netns, state }
    }

    pub(super) fn read_spec(&self, uid: &str) -> Option<SandboxSpec> {
        let bytes = fs::read(self.pod_dir(uid).join(SANDBOX_FILE)).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|s: &SandboxSpec| s.uid == uid)
    }

    /// Kills what is left of the pod, stops its shim, unpins its namespaces, removes mounts, cgroups and
    /// directories. Idempotent; also for a pod made only half, or whose shim is dead. Logs stay.
    pub async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), Error> {
        check_component("pod uid", pod_uid)?;
        let dir = self.pod_dir(pod_uid);
        self.shut_down(&dir).await;
        let (runtime, uid) = (self.clone(), pod_uid.to_owned());
        let work = move || runtime.take_apart(&uid);
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::io("remove", &dir)(io::Error::other(e)))?
    }

    async fn shut_down(&self, dir: &Path) {
        let ending = async {
            let Ok(mut link) = Link::connect(dir) else { return };
            if link.tell(&Request::Shutdown).await.is_ok() {
                while let Ok(Some(_)) = link.next().await {}
            }
        };
        if tokio::time::timeout(SHUTDOWN, ending).await.is_err() {
            tracing::warn!(pod = %dir.display(), "the shim does not end by itself");
        }
    }

    /// Everything a shim would have done, and what only the agent can. Each step works when an earlier run did it.
    fn take_apart(&self, uid: &str) -> Result<(), Error> {
        let dir = self.pod_dir(uid);
        kill_shim(&dir);
        let cgroups = &self.inner.machine.cgroups;
        // Which class the pod had may not be known any more.
        for qos in ["", "/burstable", "/besteffort"] {
            let group = format!("{}{qos}/pod{uid}", self.inner.cgroup);
            cgroups.kill(&group);
            cgroups.remove(&group).map_err(Error::io("remove the cgroup of pod", uid))?;
        }
        rootfs::unmount_below(&dir).map_err(Error::io("unmount what is in", &dir))?;
        for tree in [self.upper_dir(uid), dir] {
            remove_dir(&tree)?;
        }
        Ok(())
    }

    pub(super) fn upper_dir(&self, uid: &str) -> PathBuf {
        self.inner.config.data_dir.join("containers").join(uid)
    }

    pub(super) fn pod_cgroup(&self, spec: &SandboxSpec) -> String {
        match spec.qos.cgroup() {
            "" => format!("{}/pod{}", self.inner.cgroup, spec.uid),
            class => format!("{}/{class}/pod{}", self.inner.cgroup, spec.uid),
        }
    }

    /// The pinned network namespace of a pod, wherever it is or would be.
    pub fn netns_path(&self, pod_uid: &str) -> PathBuf {
        self.pod_dir(pod_uid).join(NAMESPACES).join("net")
    }
}

/// Ends a shim that did not end itself, after making sure that the number is still its own.
fn kill_shim(dir: &Path) {
    let Some(pid) = fs::read_to_string(dir.join(PID_FILE)).ok().and_then(|t| t.trim().parse::<i32>().ok()) else {
        return;
    };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|b| *b == 0);
    if words.any(|w| w == b"--dir") && words.next() == Some(dir.as_os_str().as_encoded_bytes()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

pub(super) fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// What becomes part of a path must be one component of it.
pub(super) fn check_component(what: &str, text: &str) -> Result<(), Error> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > 253 || text.starts_with('.') || !text.bytes().all(sound) {
        return Err(Error::Invalid { subject: format!("{what} {text:?}"), message: "it is no name".to_owned() });
    }
    Ok(())
}
