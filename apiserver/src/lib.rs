//! The Kubernetes REST API over the store.
//!
//! A request passes these modules, in this order:
//!
//! - [`serve`]: TCP, TLS and HTTP, over [`gather`]; [`pki`] holds the certificates behind it
//! - [`pipeline`]: the stations themselves: [`route`], [`authenticate`], bounds, [`authorize`]
//! - [`handlers`]: ONE generic set for all kinds, and the few special subresources; [`options`], [`filter`],
//!   [`negotiate`] and [`body`] read what a request says
//! - [`admit`] and [`allocate`]: what will be stored, as pure functions
//! - [`objects`]: read, decide, commit, and try again; [`keys`] and [`stored`] are the form in the store, and
//!   [`encryption`] is between them and the store
//! - [`present`] writes the answers
//!
//! Beside them: [`discovery`], [`join`] (how nodes come), [`members`] (how further servers come and go) over [`peers`] (the wire
//! between servers), [`paths`] of all that, [`nodeproxy`] (logs and exec), [`snapshot`] (backups), [`bootstrap`].
//!
//! Invariants:
//! - Every write is a transaction that compares what was read, so several servers over one store are safe.
//! - Nothing but [`encryption`] reads values of the store itself.
//! - A stored value never has a `resourceVersion`; reading one is a splice of bytes, without a parse.
//! - Nothing here keeps state that another server would need: what must be shared is in the store.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use rustls::{ClientConfig, ServerConfig};
use store::{LeaseId, Place, Store};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

mod admit;
mod allocate;
mod authenticate;
mod authorize;
mod body;
mod bootstrap;
mod clock;
mod discovery;
mod encryption;
mod entropy;
mod error;
mod filter;
mod gather;
mod handlers;
mod join;
mod keys;
mod members;
mod negotiate;
mod nodeproxy;
mod objects;
mod options;
pub mod paths;
mod peers;
mod pipeline;
mod pki;
mod present;
mod query;
mod route;
mod serve;
mod snapshot;
mod stored;

#[cfg(test)]
mod tests;

pub use authenticate::Identity;
pub use error::Error;
pub use members::{Admission, Application, admit};
pub use peers::Peers;
pub use pki::{create_dir as create_private_dir, write_private};
pub use snapshot::{Snapshot, Snapshots, Taken};

use allocate::{Cidr, Ranges};
use bootstrap::Advertised;
use encryption::Vault;
use pki::Pki;

/// What `/version` says: the Kubernetes release whose API this is, and our own.
pub const VERSION: &str = concat!("v1.35.0+minik8s.", env!("CARGO_PKG_VERSION"));

/// How often certificates are looked at; they are renewed months before their end.
const RENEWAL_CHECK: Duration = Duration::from_secs(12 * 3600);

#[derive(Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    /// Port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where nodes and pods reach this server; found out when absent.
    pub advertise_address: Option<IpAddr>,
    /// Further names and addresses for the server's certificate.
    pub tls_sans: Vec<String>,
    /// The join token, or its secret alone; made at the first start when absent.
    pub token: Option<String>,
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub cluster_dns: IpAddr,
    /// The wire that the store was opened over.
    pub peers: Arc<Peers>,
    /// The servers that this one has joined, as `https://HOST:PORT`: they are told where it is while no other one has found it.
    pub join: Vec<String>,
    /// Where the etcd API is served, for those who ask for the group's members.
    pub etcd_urls: Vec<String>,
    /// Resources whose objects are encrypted in the store, such as `secrets` or `deployments.apps`.
    pub encrypt: Vec<String>,
}

/// Addresses that nodes are told when they join.
struct Network {
    cluster_cidr: Cidr,
}

/// What requests share.
struct App {
    data_dir: PathBuf,
    store: Arc<Vault>,
    pki: Pki,
    tls: watch::Receiver<Tls>,
    ranges: Ranges,
    network: Network,
    advertised: Advertised,
    /// This server's among the others.
    name: String,
    etcd_urls: Vec<String>,
    peers: Arc<Peers>,
    /// Where connections of the wire run.
    wire: Place,
    join: Vec<String>,
    /// Where a later life of the cluster is, which this server does not belong to.
    superseded: watch::Sender<Option<String>>,
    /// Members are changed one at a time.
    changing: tokio::sync::Mutex<()>,
    in_flight: pipeline::InFlight,
    parsed: stored::Parsed,
    frames: handlers::Frames,
    documents: discovery::Documents,
    swagger_tags: discovery::SwaggerTags,
    event_lease: tokio::sync::Mutex<Option<(Instant, LeaseId)>>,
    /// Turns true when the server stops; watches end then.
    stop: watch::Receiver<bool>,
    ready: AtomicBool,
}

/// All sides of TLS, exchanged as one when certificates are renewed.
#[derive(Clone)]
struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    etcd: store::etcd::Tls,
}

impl App {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots { data_dir: self.data_dir.clone(), store: self.store.raw().clone() }
    }

    fn has_leader(&self) -> bool {
        self.store.raw().status().leader_id != 0
    }

    /// Where other servers reach this one.
    fn url(&self) -> String {
        format!("https://{}", self.advertised())
    }

    fn advertised(&self) -> String {
        SocketAddr::new(self.advertised.address, self.advertised.port).to_string()
    }
}

/// A running API server.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    renewing: JoinHandle<()>,
    /// What goes on beside requests, until the server is dropped.
    tasks: JoinSet<()>,
    /// Other servers are heard and told until the server is dropped: the store's end takes a word or two.
    _wired: oneshot::Sender<Infallible>,
}

impl Server {
    /// Returns when the server answers and the bootstrap objects exist. The files under the data directory are there
    /// before it answers.
    pub async fn start(config: Config, store: Store) -> Result<Self, Error> {
        let ranges = ranges(&config)?;
        let network = Network { cluster_cidr: cidr("cluster-cidr", &config.cluster_cidr)? };
        if network.cluster_cidr.overlaps(ranges.services) {
            let what = "must not overlap --service-cidr";
            return Err(Error::Flag { flag: "cluster-cidr", value: config.cluster_cidr, what });
        }
        let listener = serve::listen(config.bind).await?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: config.bind, source })?;
        let advertised = Advertised { address: advertise_address(&config), port: address.port() };
        let (pki, tls) = load_pki(&config, advertised, &ranges)?;
        let (wired, parted) = oneshot::channel::<Infallible>();
        let wire = Place::start(&store, "store-wire", async { drop(parted.await) });
        let wire = wire.map_err(|source| Error::Thread { source })?;
        let store = Arc::new(Vault::new(store, &config.data_dir, &config.encrypt)?);
        let (tls_sender, tls) = watch::channel(tls);
        let (stop_sender, stop) = watch::channel(false);
        let app = Arc::new(App {
            data_dir: config.data_dir.clone(),
            store,
            pki,
            tls: tls.clone(),
            ranges,
            network,
            advertised,
            name: hostname().unwrap_or_else(|| advertised.address.to_string()),
            etcd_urls: config.etcd_urls.clone(),
            peers: config.peers.clone(),
            wire,
            join: config.join.clone(),
            superseded: watch::Sender::new(None),
            changing: tokio::sync::Mutex::default(),
            in_flight: pipeline::InFlight::default(),
            parsed: stored::Parsed::default(),
            frames: handlers::Frames::default(),
            documents: discovery::Documents::default(),
            swagger_tags: discovery::SwaggerTags::default(),
            event_lease: tokio::sync::Mutex::new(None),
            stop: stop.clone(),
            ready: AtomicBool::new(false),
        });
        let accepting = tokio::spawn(serve::run(listener, tls, app.clone(), stop));
        let renewing = tokio::spawn(renew(config, advertised, ranges, tls_sender));
        // From here on the server's drop stops the tasks, also when the bootstrap fails.
        let stop = stop_sender;
        let mut server = Self { app, address, stop, accepting, renewing, tasks: JoinSet::new(), _wired: wired };
        server.tasks.spawn(peers::run(server.app.clone()));
        server.tasks.spawn(members::notice_removal(server.app.clone()));
        tokio::select! {
            begun = bootstrap::begin(&server.app, advertised) => begun?,
            url = superseded(server.app.clone()) => return Err(Error::Superseded { url }),
        }
        server.tasks.spawn(encryption::rotate::run(server.app.store.clone()));
        server.tasks.spawn(members::tend(server.app.clone()));
        server.tasks.spawn(bootstrap::keep(server.app.clone(), advertised));
        server.app.ready.store(true, Ordering::Release);
        Ok(server)
    }

    /// What clients of the etcd API may change besides keys.
    pub fn etcd_cluster(&self) -> Arc<dyn store::etcd::Cluster> {
        Arc::new(members::etcd::EtcdCluster(self.app.clone()))
    }

    /// Where messages of other servers come in.
    pub fn wire(&self) -> Place {
        self.app.wire.clone()
    }

    /// How clients of the etcd API are let in, with the certificates of the moment.
    pub fn etcd_tls(&self) -> impl Fn() -> store::etcd::Tls + use<> {
        let tls = self.app.tls.clone();
        move || tls.borrow().etcd.clone()
    }

    /// The API without TLS, for parts of this process, in the name of `identity`.
    pub fn service(&self, identity: Identity) -> Service {
        Service { app: self.app.clone(), identity: Arc::new(identity) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where nodes and pods reach it.
    pub fn advertised_address(&self) -> IpAddr {
        self.app.advertised.address
    }

    /// Resolves when the cluster turns out to have begun another life without this server, with the address of a server
    /// that it can join.
    pub fn superseded(&self) -> impl Future<Output = String> + use<> {
        superseded(self.app.clone())
    }

    /// What a further server needs to join, of the same form as [`Server::join_token`].
    pub fn server_token(&self) -> String {
        self.app.pki.server_token.to_string()
    }

    /// What an agent needs to join: `m8s1.<sha256 of the CA>.<secret>`.
    pub fn join_token(&self) -> String {
        self.app.pki.join_token.to_string()
    }

    /// The certificate by which everybody verifies this server, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.app.pki.ca_pem
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.app.pki.kubeconfig.clone()
    }

    /// Takes snapshots of the cluster, for as long as the store is open.
    pub fn snapshots(&self) -> Snapshots {
        self.app.snapshots()
    }

    /// Ends watches, lets other requests finish, and closes the listener.
    pub async fn shutdown(&mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "the listener had failed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.tasks.abort_all();
        self.app.peers.part();
        self.renewing.abort();
        self.accepting.abort();
    }
}

async fn superseded(app: Arc<App>) -> String {
    let mut superseded = app.superseded.subscribe();
    match superseded.wait_for(Option::is_some).await {
        Ok(url) => url.clone().unwrap_or_default(),
        // Not while this server is there.
        Err(_) => std::future::pending().await,
    }
}

/// The API as a [`tower::Service`], in the name of one identity.
#[derive(Clone)]
pub struct Service {
    app: Arc<App>,
    identity: Arc<Identity>,
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = authenticate::Peer::InProcess(self.identity.clone());
        let answer = pipeline::handle(self.app.clone(), peer, request.map(Body::new));
        Box::pin(async move { Ok(answer.await) })
    }
}

fn cidr(flag: &'static str, text: &str) -> Result<Cidr, Error> {
    let what = "must be an IPv4 range such as 10.96.0.0/16, with a prefix from 8 to 28";
    Cidr::parse(text).ok_or_else(|| Error::Flag { flag, value: text.to_owned(), what })
}

fn ranges(config: &Config) -> Result<Ranges, Error> {
    let services = cidr("service-cidr", &config.service_cidr)?;
    if !services.contains(config.cluster_dns) {
        let what = "must be an address of --service-cidr";
        return Err(Error::Flag { flag: "cluster-dns", value: config.cluster_dns.to_string(), what });
    }
    if config.cluster_dns == services.nth(1) {
        let what = "must not be the first address of --service-cidr, which is the API server's";
        return Err(Error::Flag { flag: "cluster-dns", value: config.cluster_dns.to_string(), what });
    }
    Ok(Ranges { services, dns: config.cluster_dns })
}

/// The address given, the one bound to, or the one that the default route leaves by.
pub fn advertise_address(config: &Config) -> IpAddr {
    match (config.advertise_address, config.bind.ip()) {
        (Some(address), _) => address,
        (None, bound) if !bound.is_unspecified() => bound,
        (None, _) => outgoing_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

/// Connecting a UDP socket sends nothing: the kernel only looks up the route.
fn outgoing_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn load_pki(config: &Config, advertised: Advertised, ranges: &Ranges) -> Result<(Pki, Tls), Error> {
    let mut sans: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
    sans.push("kubernetes.default.svc.cluster.local".into());
    sans.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), ranges.services.nth(1), advertised.address].map(|ip| ip.to_string()));
    if !config.bind.ip().is_unspecified() {
        sans.push(config.bind.ip().to_string());
    }
    sans.extend(hostname());
    sans.extend(config.tls_sans.iter().cloned());
    let reached_at = match config.advertise_address {
        Some(address) => address,
        None if config.bind.ip().is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        None => config.bind.ip(),
    };
    let subject = pki::Subject {
        data_dir: &config.data_dir,
        sans: sans.into_iter().collect(),
        url: format!("https://{}", SocketAddr::new(reached_at, advertised.port)),
        token: config.token.as_deref(),
        now: clock::seconds(),
    };
    let pki = Pki::load(&subject)?;
    let etcd = store::etcd::Tls { config: pki.etcd_config()?, admits: pki::admits_to_etcd };
    let tls = Tls { server: pki.server_config()?, client: pki.node_client_config()?, etcd };
    Ok((pki, tls))
}

fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned();
    // What is no DNS name cannot stand in a certificate.
    api::names::dns1123_subdomain(&name).is_empty().then_some(name)
}

/// Issues certificates anew while the server runs, so that none of them ends with a long uptime.
async fn renew(config: Config, advertised: Advertised, ranges: Ranges, tls: watch::Sender<Tls>) {
    loop {
        tokio::time::sleep(RENEWAL_CHECK).await;
        match load_pki(&config, advertised, &ranges) {
            Ok((_, renewed)) => drop(tls.send_replace(renewed)),
            Err(error) => tracing::error!(%error, "cannot renew certificates, trying again later"),
        }
    }
}
