//! The node: it joins a cluster, keeps the Node object true, and runs the pods that the scheduler gives it.
//!
//! Reading order:
//! - [`join`]: from a token to a certificate; [`renew`]: to the next one; [`node_status`] and [`lease`]: the Node object and its sign of life
//! - [`pod`]: one pod: what is known, what to do, how it is done; [`pod::manager`] decides which pods have a worker
//! - [`env`](mod@env), [`netfiles`], [`volumes`]: what a container finds; [`probe`]: how it is asked whether it is well
//! - [`collect`]: what keeps the disk from filling up
//! - [`events`], [`logs`], [`server`]: what others get to see
//! - [`backend`], [`network`], [`context`]: the seams to runtime and network, and what workers share
//! - [`image`], [`runtime`], [`shim`]: images, containers, and the process that outlives the agent
//!
//! Invariant: pods outlive the agent. Nothing that [`Agent::stop`] ends is needed by a running container.
//! Invariant: what a pod spec names is joined to a path in [`paths`] or opened below a root in [`volumes`], nowhere else.
//! Invariant: a pod runs only while its object exists or the API cannot be asked; an object that is gone ends it.

pub mod join;
pub mod lease;
pub mod node_status;
pub mod renew;

pub mod pod;

pub mod env;
pub mod netfiles;
pub mod probe;
pub mod volumes;

pub mod events;
pub mod logs;
pub mod server;

pub mod collect;

pub mod backend;
pub mod context;
pub mod network;
pub mod paths;

pub mod image;
pub mod runtime;
pub mod shim;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{Client, Credentials, Https, ListParams};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod, Service, Taint};
use netdata::Netdata;
use nix::fcntl::{Flock, FlockArg};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    backend::ContainerRuntime,
    context::Context,
    env::NodeView,
    events::Recorder,
    netfiles::ClusterDns,
    network::Network,
    node_status::Facts,
    paths::Paths,
    pod::manager::Manager,
    renew::Renewal,
    runtime::{Runtime, RuntimeConfig},
};

/// A network that does not come up is tried again so soon, and ever more slowly.
const NETWORK_RETRY_FIRST: Duration = Duration::from_millis(200);
const NETWORK_RETRY_LAST: Duration = Duration::from_secs(10);
/// The file in each of an agent's directories by which it is that agent's alone.
const LOCK: &str = "agent.lock";
/// Pods removed at once when the whole node goes.
const REMOVALS: usize = 8;

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port` of the servers, in the order in which they are tried.
    pub join: Vec<String>,
    /// Needed at the first start, and after so long a pause that the certificate has expired; otherwise it renews itself.
    pub token: Option<String>,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub node_name: String,
    /// The source address of the route to the server, when not given.
    pub node_ip: Option<IpAddr>,
    /// `key=value`
    pub labels: Vec<String>,
    /// `key=value:Effect`
    pub taints: Vec<String>,
    pub registries: Option<PathBuf>,
}

/// Why there is no agent. Each text says what to do where there is something to be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Refused(String),
    #[error("{operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is in use by another agent: give this one a --data-dir and a --run-dir of its own", path = .0.display())]
    InUse(PathBuf),
    #[error("listen on {address}: {source}. Is there another node at this address? --node-ip chooses another")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the container runtime cannot be opened")]
    Runtime(#[source] runtime::Error),
    #[error("the client of the API cannot be made")]
    Client(#[source] client::Error),
    #[error("the node's certificate cannot be renewed")]
    Renewal(#[source] client::Error),
    #[error("the node's certificate cannot be used")]
    Tls(#[source] server::tls::TlsError),
    #[error("internal error: {0}")]
    Internal(String),
}

/// A running node.
pub struct Agent {
    runtime: Runtime,
    network: Network,
    paths: Paths,
    run_dir: PathBuf,
    tasks: Mutex<JoinSet<()>>,
    /// Held as long as the agent lives.
    _locks: [Flock<fs::File>; 2],
}

impl Agent {
    /// Joins the cluster, if need be, and begins to run pods. Returns when the node is about to become ready.
    pub async fn start(config: Config) -> Result<Agent, Error> {
        let labels = parse_labels(&config.labels)?;
        let taints = config.taints.iter().map(|t| parse_taint(t)).collect::<Result<Vec<_>, _>>()?;
        paths::component(&config.node_name)
            .map_err(|_| Error::Refused(format!("{:?} cannot be a node's name: use --node-name", config.node_name)))?;
        let locks = [lock(&config.data_dir.join("agent"))?, lock(&config.run_dir)?];
        let registries = match &config.registries {
            Some(path) => image::Registries::load(path).map_err(|error| Error::Refused(error.to_string()))?,
            None => image::Registries::default(),
        };
        let paths = Paths::new(&config.data_dir);
        let node_ip = match config.node_ip {
            Some(ip) => ip,
            None => join::source_address(&config.join).await?,
        };
        let address = SocketAddr::new(node_ip, server::PORT);
        let listener = server::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let identity = join::identity(&join::Application {
            servers: &config.join,
            token: config.token.as_deref(),
            node_name: &config.node_name,
            node_ip,
            dir: paths.identity(),
        })
        .await?;
        let (client, credentials) = Client::https(&Https {
            servers: config.join.clone(),
            ca: identity.ca.clone().into_bytes(),
            identity: identity.pem(),
        })
        .map_err(Error::Client)?;
        let tls = server::tls::config(&identity.certificate, &identity.key, &identity.ca).map_err(Error::Tls)?;
        let runtime = Runtime::open(RuntimeConfig {
            data_dir: config.data_dir.clone(),
            run_dir: config.run_dir.clone(),
            node_name: config.node_name.clone(),
            registries,
            shim_exe: None,
        })
        .map_err(Error::Runtime)?;
        let facts = Facts::gather(&config.node_name, node_ip, &labels, taints, config.data_dir.clone());
        let parts = Parts { config, node_ip, identity, client, credentials, runtime, paths, facts };
        parts.run(listener, tls, locks)
    }

    /// Ends the agent. Pods keep running, and a later agent finds them again.
    pub async fn stop(&self) {
        self.end_tasks().await;
        if let Some(network) = self.network.now() {
            network.stop().await;
        }
    }

    /// Ends the agent and everything that this node runs: processes, mounts, namespaces, interfaces, rules.
    pub async fn remove_all(&self) {
        self.end_tasks().await;
        let sandboxes = match self.runtime.sandboxes().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::error!(error = pod::error_text(&error), "the node's pods cannot be listed");
                Vec::new()
            }
        };
        let removals = sandboxes.into_iter().map(|sandbox| async move {
            if let Err(error) = self.runtime.remove_sandbox(&sandbox.uid).await {
                tracing::error!(uid = sandbox.uid, error = pod::error_text(&error), "a pod stays behind");
            }
        });
        stream::iter(removals).buffer_unordered(REMOVALS).collect::<Vec<()>>().await;
        let pods = self.paths.pods();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || volumes::remove(&pods)).await {
            tracing::error!(%error, "volumes stay behind");
        }
        if let Some(network) = self.network.now()
            && let Err(error) = network.remove_all().await
        {
            tracing::error!(error = pod::error_text(&error), "parts of the pod network stay behind");
        }
        let (runtime, run_dir) = (self.runtime.clone(), self.run_dir.clone());
        let removed = tokio::task::spawn_blocking(move || {
            runtime.remove_rest()?;
            // The lock goes last; the directory itself only if nobody else keeps anything in it.
            let _ = fs::remove_file(run_dir.join(LOCK));
            let _ = fs::remove_dir(run_dir);
            Ok::<_, runtime::Error>(())
        });
        if let Ok(Err(error)) = removed.await {
            tracing::error!(error = pod::error_text(&error), "parts of the node stay behind");
        }
    }

    async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

/// An agent about to run.
struct Parts {
    config: Config,
    node_ip: IpAddr,
    identity: join::Identity,
    client: Client,
    credentials: Credentials,
    runtime: Runtime,
    paths: Paths,
    facts: Facts,
}

impl Parts {
    fn run(
        self,
        listener: tokio::net::TcpListener,
        tls: rustls::ServerConfig,
        locks: [Flock<fs::File>; 2],
    ) -> Result<Agent, Error> {
        let name = self.config.node_name.clone();
        let client = self.client.clone();
        let pods = client.cache_where::<Pod>(ListParams::fields(format!("spec.nodeName={name}")));
        let nodes = client.cache_where::<Node>(ListParams::fields(format!("metadata.name={name}")));
        let (events, recording) = Recorder::new(client.clone(), name.clone());
        let (network_up, network) = watch::channel(None);
        let network = Network::new(network);
        let (ready, is_ready) = watch::channel(false);
        let runtime: Arc<dyn ContainerRuntime> = Arc::new(self.runtime.clone());
        let context = Arc::new(Context {
            client: client.clone(),
            runtime: Arc::clone(&runtime),
            network: Arc::new(network.clone()),
            events,
            paths: self.paths.clone(),
            services: client.cache::<Service>(),
            node: NodeView { ips: vec![self.node_ip.to_string()], allocatable: self.facts.allocatable.clone() },
            node_memory: self.facts.memory,
            dns: ClusterDns { server: self.identity.cluster.cluster_dns, domain: netdata::CLUSTER_DOMAIN.to_owned() },
            status_writes: Context::status_permits(),
            starts: Context::start_permits(),
        });
        let served = server::Served { pods: Arc::clone(&pods), runtime, paths: self.paths.clone() };
        let (renewed, server_config) = watch::channel(Arc::new(tls));
        let settings = network_settings(&self.config, self.node_ip, &self.identity.cluster)?;
        let renewal = Renewal {
            client: client.clone(),
            credentials: self.credentials,
            server: renewed,
            identity: self.identity,
            node_name: name.clone(),
            node_ip: self.node_ip,
            dir: self.paths.identity(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(recording);
        tasks.spawn(renewal.run());
        tasks.spawn(bring_up(settings, client.clone(), network_up, ready));
        tasks.spawn(node_status::run(client.clone(), Arc::new(self.facts), Arc::clone(&nodes), is_ready));
        tasks.spawn(lease::run(client, name, nodes));
        tasks.spawn(server::run(listener, server_config, served));
        tasks.spawn(collect::run(self.runtime.clone(), Arc::clone(&pods), node_status::PRESSURE));
        tasks.spawn(Manager::new(context, pods).run());
        let (runtime, paths, run_dir) = (self.runtime, self.paths, self.config.run_dir);
        Ok(Agent { runtime, network, paths, run_dir, tasks: Mutex::new(tasks), _locks: locks })
    }
}

fn network_settings(config: &Config, node_ip: IpAddr, cluster: &join::Cluster) -> Result<netdata::Config, Error> {
    let cidr = |text: &str| {
        text.parse().map_err(|_| Error::Refused(format!("the server names an address range that is none: {text:?}")))
    };
    let v4 = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => {
            Err(Error::Refused(format!("the pod network needs an IPv4 address, not {ip}: give --node-ip")))
        }
    };
    Ok(netdata::Config {
        node_name: config.node_name.clone(),
        node_ip: v4(node_ip)?,
        cluster_cidr: cidr(&cluster.cluster_cidr)?,
        service_cidr: cidr(&cluster.service_cidr)?,
        cluster_dns: v4(cluster.cluster_dns)?,
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
    })
}

/// Starts the pod network, again and again until it stands; then keeps it until dropped.
async fn bring_up(
    settings: netdata::Config,
    client: Client,
    up: watch::Sender<Option<Arc<Netdata>>>,
    ready: watch::Sender<bool>,
) {
    let mut pause = NETWORK_RETRY_FIRST;
    loop {
        match Netdata::start(settings.clone(), client.clone()).await {
            Ok(network) => {
                up.send_replace(Some(Arc::new(network)));
                ready.send_replace(true);
                // The senders live on, so that those who wait are not told that nothing will come.
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::error!(error = pod::error_text(&error), "the pod network does not come up; trying on")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(NETWORK_RETRY_LAST);
    }
}

/// Makes a directory this agent's alone.
fn lock(dir: &Path) -> Result<Flock<fs::File>, Error> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    };
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    let path = dir.join(LOCK);
    loop {
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(io("open", &path))?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => Error::InUse(dir.to_owned()),
            errno => Error::Io { operation: "lock", path: path.clone(), source: errno.into() },
        })?;
        // An agent that removed itself in between took the file along: a lock on it would keep nobody out.
        let own = locked.metadata().map_err(io("look at", &path))?.ino();
        if fs::metadata(&path).is_ok_and(|found| found.ino() == own) {
            return Ok(locked);
        }
    }
}

fn parse_labels(given: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let parse = |text: &String| {
        let refused = |why: &str| Error::Refused(format!("--node-label {text:?}: {why}"));
        let (key, value) = text.split_once('=').ok_or_else(|| refused("a label has the form key=value"))?;
        let mut wrong = api::names::qualified_name(key);
        wrong.extend(api::names::label_value(value));
        match wrong.first() {
            Some(why) => Err(refused(why)),
            None => Ok((key.to_owned(), value.to_owned())),
        }
    };
    given.iter().map(parse).collect()
}

fn parse_taint(text: &str) -> Result<Taint, Error> {
    let wrong = || {
        Error::Refused(format!(
            "a node taint has the form key=value:Effect with NoSchedule, PreferNoSchedule or NoExecute, not {text:?}"
        ))
    };
    let (rest, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value.to_owned())));
    if key.is_empty() || !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(wrong());
    }
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_are_parsed() {
        let labels = parse_labels(&["disk=ssd".to_owned(), "empty=".to_owned()]).expect("labels");
        assert_eq!(labels, [("disk".to_owned(), "ssd".to_owned()), ("empty".to_owned(), String::new())].into());
        for wrong in ["disk", "=x", "a/b/c=d", "a=b c"] {
            let refused = parse_labels(&[wrong.to_owned()]);
            assert!(refused.is_err_and(|e| e.to_string().starts_with("--node-label")), "{wrong}");
        }
        let taint = parse_taint("dedicated=gpu:NoSchedule").expect("a taint");
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            ("dedicated", Some("gpu"), "NoSchedule")
        );
        assert_eq!(parse_taint("dedicated:NoExecute").expect("a taint").value, None);
        for bad in ["dedicated", "x=y:Never", ":NoSchedule", ""] {
            assert!(parse_taint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_has_one_agent() {
        let home = tempfile::tempdir().expect("a directory");
        let first = lock(home.path()).expect("locked");
        assert!(matches!(lock(home.path()), Err(Error::InUse(_))));
        drop(first);
        assert!(lock(home.path()).is_ok());
    }
}
