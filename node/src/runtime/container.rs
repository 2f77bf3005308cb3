//! Containers: their bundles, and what is asked of their shims.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::machine::host_devices;
use super::sandbox::{check_component, remove_dir};
use super::types::{ContainerId, ContainerSpec, ContainerState, Exit, RunState, SandboxSpec};
use super::{Error, Runtime, link, oci, rootfs, user};
use crate::image::{Collect, Collected, Image, Root};
use crate::shim::proto::{Answer, Create, Request, read_exit};

/// What an exit looks like that nobody could see.
const LOST_CODE: i32 = 255;

/// In a container's directory: what the agent must know of it later.
const RECORD: &str = "container.json";

#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    attempt: u32,
    image: String,
    cgroup: String,
}

impl Runtime {
    /// Mounts the root file system and makes the container up to the point where its command would start.
    pub async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId, Error> {
        check_component("container name", &spec.name)?;
        check_component("pod uid", &spec.pod_uid)?;
        let id = ContainerId { pod_uid: spec.pod_uid.clone(), name: spec.name.clone(), attempt: spec.attempt };
        let sandbox = self.read_spec(&id.pod_uid).ok_or_else(|| Error::NoSandbox { uid: id.pod_uid.clone() })?;
        let image = self.inner.images.get(&spec.image).ok_or_else(|| Error::NoImage(spec.image.clone()))?;
        let bundle = self.bundle(&id);
        if bundle.exists() {
            // Either it is there, or an agent was stopped before it asked for it.
            if self.status(&id.pod_uid).await?.iter().any(|c| c.id == id) {
                return Err(Error::Invalid { subject: id.to_string(), message: "it exists".to_owned() });
            }
            self.remove_files(&id).await?;
        }
        let _permit = self.permit().await;
        let create = Create {
            container: id.local(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            cgroup: format!("{}/{}", self.pod_cgroup(&sandbox), id.local()),
            log_path: spec.log_path.clone(),
            terminal: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            oom_score_adj: spec.oom_score_adj.unwrap_or(0),
        };
        let made = async {
            let (runtime, spec, id) = (self.clone(), spec.clone(), id.clone());
            let cgroup = create.cgroup.clone();
            let prepare = move || runtime.prepare(&sandbox, &spec, &id, &image, &cgroup);
            tokio::task::spawn_blocking(prepare)
                .await
                .map_err(|e| Error::io("prepare", &bundle)(io::Error::other(e)))??;
            Ok(())
        };
        let made: Result<(), Error> = made.await;
        let made = match made {
            Ok(()) => self.ask(&id, "create", &Request::Create(create)).await.map(drop),
            failed => failed,
        };
        if let Err(e) = made {
            if let Err(left) = self.remove_files(&id).await {
                tracing::warn!(container = %id, error = %left, "a half-made container stays until its pod goes");
            }
            return Err(e);
        }
        Ok(id)
    }

    /// The bundle, its root file system mounted and its configuration written.
    fn prepare(
        &self,
        sandbox: &SandboxSpec,
        spec: &ContainerSpec,
        id: &ContainerId,
        image: &Image,
        cgroup: &str,
    ) -> Result<(), Error> {
        let invalid = |message: String| Error::Invalid { subject: id.to_string(), message };
        let bundle = self.bundle(id);
        let target = bundle.join("rootfs");
        fs::create_dir_all(&target).map_err(Error::io("create directory", &target))?;
        // The image counts as used from here on; while it does not, nothing is collected.
        let _collecting = self.inner.images.hold_off_collection()?;
        let record = Record {
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: image.id.clone(),
            cgroup: cgroup.to_owned(),
        };
        write_json(&bundle.join(RECORD), &record)?;
        let own = self.upper_dir(&id.pod_uid).join(id.local());
        let layers = self.inner.images.layer_dirs(image);
        rootfs::mount_overlay(&layers, &own, &target).map_err(Error::io("mount the root file system", &target))?;
        let root = Root::open(&target).map_err(Error::io("open", &target))?;
        let user = user::resolve(&root, &image.config.user, &spec.user).map_err(invalid)?;
        let cwd = oci::working_dir(spec, &image.config);
        // A working directory the image does not have is made, as others do; what stands in its way the start will name.
        let _ = root.make_dirs(cwd.strip_prefix("/").unwrap_or(&cwd));
        let devices = if spec.security.privileged { host_devices() } else { Vec::new() };
        let config = oci::config(&oci::Input {
            sandbox,
            pod_dir: &self.pod_dir(&id.pod_uid),
            spec,
            image: &image.config,
            user: &user,
            rootfs: &target,
            cgroup,
            machine: &self.inner.machine,
            devices: &devices,
        })
        .map_err(invalid)?;
        write_json(&bundle.join("config.json"), &config)
    }

    pub async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        let _permit = self.permit().await;
        self.ask(id, "start", &Request::Start { container: id.local() }).await.map(drop)
    }

    /// Sends a signal to the container's first process; one that has exited is no error.
    pub async fn signal(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        self.ask(id, "signal", &Request::Signal { container: id.local(), signal }).await.map(drop)
    }

    /// Kills what is left of the container and removes its root file system and cgroup; its log stays. Idempotent.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let _permit = self.permit().await;
        match self.ask(id, "remove", &Request::Remove { container: id.local() }).await {
            // Without a shim the files tell what is left.
            Ok(_) | Err(Error::NoSandbox { .. }) => self.remove_files(id).await,
            Err(e) => Err(e),
        }
    }

    async fn remove_files(&self, id: &ContainerId) -> Result<(), Error> {
        let (runtime, id) = (self.clone(), id.clone());
        let work = move || {
            let bundle = runtime.bundle(&id);
            if let Some(record) = read_record(&bundle) {
                let cgroups = &runtime.inner.machine.cgroups;
                cgroups.kill(&record.cgroup);
                cgroups.remove(&record.cgroup).map_err(Error::io("remove the cgroup of", id.to_string()))?;
            }
            rootfs::unmount_below(&bundle).map_err(Error::io("unmount what is in", &bundle))?;
            remove_dir(&runtime.upper_dir(&id.pod_uid).join(id.local()))?;
            remove_dir(&bundle)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::io("remove", "container")(io::Error::other(e)))?
    }

    /// Every container of the pod that has not been removed. Works when the shim is gone, from what it wrote down.
    pub async fn status(&self, pod_uid: &str) -> Result<Vec<ContainerState>, Error> {
        let dir = self.pod_dir(pod_uid);
        if !dir.exists() {
            return Err(Error::NoSandbox { uid: pod_uid.to_owned() });
        }
        let records = records(&dir);
        match link::ask(&dir, pod_uid, "ask for the status of pod", pod_uid, &Request::Status).await {
            Ok(Answer::Status { containers }) => {
                let known: BTreeMap<String, _> = containers.into_iter().map(|c| (c.container.clone(), c)).collect();
                let state = |record: Record| {
                    let id =
                        ContainerId { pod_uid: pod_uid.to_owned(), name: record.name.clone(), attempt: record.attempt };
                    let seen = known.get(&id.local())?;
                    Some(described(id, record, seen.pid, seen.state.clone()))
                };
                Ok(records.into_iter().filter_map(state).collect())
            }
            Ok(_) | Err(Error::NoSandbox { .. }) => {
                Ok(records.into_iter().map(|r| self.last_known(pod_uid, r)).collect())
            }
            Err(e) => Err(e),
        }
    }

    fn last_known(&self, pod_uid: &str, record: Record) -> ContainerState {
        let id = ContainerId { pod_uid: pod_uid.to_owned(), name: record.name.clone(), attempt: record.attempt };
        let exit = read_exit(&self.bundle(&id)).unwrap_or_else(|| Exit {
            code: LOST_CODE,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
        });
        described(id, record, None, RunState::Exited(exit))
    }

    /// The ids of the images that containers of this node use.
    pub fn images_in_use(&self) -> BTreeSet<String> {
        images_in_use(&self.inner.config.run_dir)
    }

    /// Removes images (never those in use) and what nothing names.
    pub fn collect_images(&self, collect: Collect) -> Result<Collected, Error> {
        Ok(self.inner.images.gc_unless(|| self.images_in_use(), collect)?)
    }

    pub(super) async fn ask(
        &self,
        id: &ContainerId,
        operation: &'static str,
        request: &Request,
    ) -> Result<Answer, Error> {
        link::ask(&self.pod_dir(&id.pod_uid), &id.pod_uid, operation, &id.to_string(), request).await
    }

    pub(super) fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.pod_dir(&id.pod_uid).join("containers").join(id.local())
    }
}

fn described(id: ContainerId, record: Record, pid: Option<i32>, state: RunState) -> ContainerState {
    ContainerState { id, name: record.name, attempt: record.attempt, pid, image: record.image, state }
}

fn records(pod_dir: &Path) -> Vec<Record> {
    let entries = fs::read_dir(pod_dir.join("containers")).into_iter().flatten().flatten();
    entries.filter_map(|e| read_record(&e.path())).collect()
}

fn read_record(bundle: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(bundle.join(RECORD)).ok()?).ok()
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::io("encode", path)(e.into()))?;
    fs::write(path, bytes).map_err(Error::io("write", path))
}

/// The ids of the images that the containers below a run directory use. Asks no shim, so it works beside an agent.
pub fn images_in_use(run_dir: &Path) -> BTreeSet<String> {
    let pods = fs::read_dir(run_dir.join("pods")).into_iter().flatten().flatten();
    pods.flat_map(|pod| records(&pod.path())).map(|r| r.image).collect()
}
