//! What the node needs from the outside world, as small traits: containers and the pod network. The real ones are
//! [`crate::runtime::Runtime`] and `netdata`; tests pass doubles that fail, stall and lose things.

use std::{net::IpAddr, path::PathBuf, pin::Pin, time::Duration};

use tokio::sync::broadcast;

use crate::{
    image::{Auth, Image, ImageError, PullPolicy},
    runtime::{
        AttachSpec, ContainerId, ContainerSpec, ContainerState, Error, ExecOutput, ExecSession, ExecSpec, Runtime,
        RuntimeEvent, Sandbox, SandboxSpec,
    },
};

pub type Doing<'a, T, E = Error> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// Images, sandboxes and containers. Every method may be called again after it failed.
pub trait ContainerRuntime: Send + Sync + 'static {
    fn pull<'a>(&'a self, image: &'a str, auth: Option<Auth>, policy: PullPolicy) -> Doing<'a, Image, ImageError>;
    /// An image of this node, by name or id.
    fn image(&self, name: &str) -> Option<Image>;
    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Doing<'a, Sandbox>;
    fn sandboxes(&self) -> Doing<'_, Vec<Sandbox>>;
    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, ()>;
    fn create_container<'a>(&'a self, spec: &'a ContainerSpec) -> Doing<'a, ContainerId>;
    fn start<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()>;
    fn signal<'a>(&'a self, id: &'a ContainerId, signal: i32) -> Doing<'a, ()>;
    fn remove<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()>;
    fn status<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, Vec<ContainerState>>;
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
    fn exec<'a>(&'a self, id: &'a ContainerId, spec: ExecSpec) -> Doing<'a, ExecSession>;
    fn exec_sync<'a>(&'a self, id: &'a ContainerId, command: &'a [String], timeout: Duration) -> Doing<'a, ExecOutput>;
    fn attach<'a>(&'a self, id: &'a ContainerId, spec: AttachSpec) -> Doing<'a, ExecSession>;
}

impl ContainerRuntime for Runtime {
    fn pull<'a>(&'a self, image: &'a str, auth: Option<Auth>, policy: PullPolicy) -> Doing<'a, Image, ImageError> {
        Box::pin(self.images().pull(image, auth, policy))
    }

    fn image(&self, name: &str) -> Option<Image> {
        self.images().get(name)
    }

    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Doing<'a, Sandbox> {
        Box::pin(Runtime::create_sandbox(self, spec))
    }

    fn sandboxes(&self) -> Doing<'_, Vec<Sandbox>> {
        Box::pin(Runtime::sandboxes(self))
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, ()> {
        Box::pin(Runtime::remove_sandbox(self, pod_uid))
    }

    fn create_container<'a>(&'a self, spec: &'a ContainerSpec) -> Doing<'a, ContainerId> {
        Box::pin(Runtime::create_container(self, spec))
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()> {
        Box::pin(Runtime::start(self, id))
    }

    fn signal<'a>(&'a self, id: &'a ContainerId, signal: i32) -> Doing<'a, ()> {
        Box::pin(Runtime::signal(self, id, signal))
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()> {
        Box::pin(Runtime::remove(self, id))
    }

    fn status<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, Vec<ContainerState>> {
        Box::pin(Runtime::status(self, pod_uid))
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        Runtime::events(self)
    }

    fn exec<'a>(&'a self, id: &'a ContainerId, spec: ExecSpec) -> Doing<'a, ExecSession> {
        Box::pin(Runtime::exec(self, id, spec))
    }

    fn exec_sync<'a>(&'a self, id: &'a ContainerId, command: &'a [String], timeout: Duration) -> Doing<'a, ExecOutput> {
        Box::pin(Runtime::exec_sync(self, id, command, timeout))
    }

    fn attach<'a>(&'a self, id: &'a ContainerId, spec: AttachSpec) -> Doing<'a, ExecSession> {
        Box::pin(Runtime::attach(self, id, spec))
    }
}

/// The pod network; the error is a text for an event.
pub trait PodNetwork: Send + Sync + 'static {
    fn attach(&self, netns: PathBuf, pod_uid: String) -> Doing<'_, IpAddr, String>;
    /// Idempotent, and right also when the network namespace is gone.
    fn detach(&self, pod_uid: String) -> Doing<'_, (), String>;
}
