//! The agent's side of running containers: images on one hand, one shim process per pod on the other.
//!
//! Read in this order: `types` (what is asked and answered), `sandbox` (pods' shims), `container`, `exec`,
//! `oci` (a container's configuration, pure), `seccomp`, `user`, `rootfs`, `cgroup`, `machine`, `seal`, `link`.
//!
//! Invariants: this process never calls libcontainer (it forks and changes the working directory; only the
//! single-threaded shims do). Everything of a pod is found again from `<run-dir>/pods/<uid>` alone. No path is made
//! of text that has not been checked to be one component.

mod cgroup;
mod container;
mod error;
mod exec;
mod link;
mod machine;
mod oci;
mod rootfs;
mod sandbox;
mod seal;
mod seccomp;
mod types;
mod user;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, broadcast};

pub use cgroup::Cgroups;
pub use container::images_in_use;
pub use error::Error;
pub use exec::{AttachSpec, EXEC_SYNC_OUTPUT, ExecSession, Reader, Resizer, Writer};
pub use types::*;

use crate::image::ImageStore;
use machine::Machine;
use seal::Sealed;

/// How many events may wait for a slow reader; one that falls behind gets `Lagged` and looks at every pod again.
const EVENTS: usize = 1024;
/// Containers made at once: each is a few milliseconds of pure work in the kernel, and more at a time only make
/// every one of them late.
const CONCURRENT: usize = 8;

/// The group that all nodes of this machine are below.
const CGROUPS: &str = "/minik8s";

/// The node's container runtime. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    images: ImageStore,
    machine: Machine,
    shim: Sealed,
    /// `/minik8s/<node-name>`.
    cgroup: String,
    events: broadcast::Sender<RuntimeEvent>,
    watched: Mutex<HashSet<String>>,
    warned: Mutex<HashSet<&'static str>>,
    busy: Semaphore,
}

impl Runtime {
    pub fn open(config: RuntimeConfig) -> Result<Runtime, Error> {
        sandbox::check_component("node name", &config.node_name)?;
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("resolve", path));
        let config =
            RuntimeConfig { data_dir: absolute(&config.data_dir)?, run_dir: absolute(&config.run_dir)?, ..config };
        std::fs::create_dir_all(&config.run_dir).map_err(Error::io("create directory", &config.run_dir))?;
        let images = ImageStore::open(&config.data_dir, config.registries.clone())?;
        let machine = Machine::look().map_err(Error::io("look at", "/proc"))?;
        let program = match &config.shim_exe {
            Some(path) => path.clone(),
            None => PathBuf::from("/proc/self/exe"),
        };
        let shim = Sealed::of(&program).map_err(Error::io("seal", &program))?;
        let (events, _) = broadcast::channel(EVENTS);
        let cgroup = format!("{CGROUPS}/{}", config.node_name);
        let busy = Semaphore::new(CONCURRENT);
        let inner = Inner {
            config,
            images,
            machine,
            shim,
            cgroup,
            events,
            watched: Mutex::default(),
            warned: Mutex::default(),
            busy,
        };
        Ok(Runtime { inner: Arc::new(inner) })
    }

    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }

    /// Exits of containers and losses of shims, pushed as they happen.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    /// Removes what the node itself has on the machine, once no pod is left: its cgroups, and the pods' directory.
    pub fn remove_rest(&self) -> Result<(), Error> {
        let cgroups = &self.inner.machine.cgroups;
        cgroups.remove(&self.inner.cgroup).map_err(Error::io("remove the cgroups of", &self.inner.cgroup))?;
        cgroups.remove_empty(CGROUPS);
        let pods = self.inner.config.run_dir.join("pods");
        match std::fs::remove_dir(&pods) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove directory", &pods)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.inner.config.run_dir.join("pods").join(uid)
    }

    fn watched(&self) -> MutexGuard<'_, HashSet<String>> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed; without a permit the work is merely not held back.
        self.inner.busy.acquire().await.ok()
    }

    /// What a limited machine refuses is said once, not per pod.
    fn warn_once(&self, what: &'static str, detail: &str) {
        if self.inner.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(what) {
            tracing::warn!(what, detail, "this machine refuses it; it is left out from here on");
        }
    }
}
