//! Objects that every cluster has: the system's namespaces, and the service under which pods reach this server.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{
    registry::{Kind, Part, by_plural},
    status::{Reason, Status},
};
use serde_json::{Value, json};

use crate::{
    App, Error, admit, body,
    clock::Reminder,
    keys, members,
    objects::Spot,
    options::{DryRun, FieldValidation},
};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Pause after a failed attempt to mend an object.
const RETRY: Duration = Duration::from_secs(1);

/// Where this server can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Advertised {
    pub address: IpAddr,
    pub port: u16,
}

/// How often a server says what it waits for.
const REMIND: Duration = Duration::from_secs(60);

/// The first run, once the store serves: a server whose fellows are not there yet waits for them.
pub async fn begin(app: &App, advertised: Advertised) -> Result<(), Error> {
    let mut reminder = Reminder::default();
    loop {
        let ended = |what: store::Error| Error::Bootstrap { object: "store".into(), what: what.to_string() };
        let tried = match app.store.read_barrier().await {
            Ok(()) => attempt(app, advertised).await,
            Err(fatal @ (store::Error::Fatal { .. } | store::Error::Closed)) => return Err(ended(fatal)),
            Err(error) => Err(ended(error)),
        };
        match tried {
            // A lone server has nobody to wait for.
            Err(Error::Bootstrap { what, .. }) if app.store.raw().group().borrow().ids().count() != 1 => {
                let trouble = if is_found(app) { None } else { members::tell_where(app).await? };
                if reminder.is_due(REMIND) {
                    match (is_found(app), trouble) {
                        (true, _) => tracing::warn!(what, "waiting for a majority of the cluster's servers"),
                        (false, trouble) => tracing::warn!(
                            trouble,
                            "no other server has found this one, which they look for at {}: if they cannot reach it there, start \
                             it again with --join, and with the right --advertise-address and --bind",
                            app.url()
                        ),
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
            tried => return tried,
        }
    }
}

async fn attempt(app: &App, advertised: Advertised) -> Result<(), Error> {
    let announced = members::announce(app).await;
    announced.map_err(|status| Error::Bootstrap { object: "this server".into(), what: status.message })?;
    app.store.begin(&app.data_dir).await?;
    run(app, advertised).await
}

/// Whether any other server has ever got through to this one.
fn is_found(app: &App) -> bool {
    app.store.raw().group().borrow().leader_id != 0 || !app.store.raw().snapshot().members().is_empty()
}

pub async fn run(app: &App, advertised: Advertised) -> Result<(), Error> {
    for name in NAMESPACES {
        ensure(app, "", "namespaces", "", json!({"metadata": {"name": name}})).await?;
    }
    ensure(app, "", "services", "default", service(app, advertised)).await?;
    same_range(app)?;
    if advertised.address.is_loopback() || advertised.address.is_unspecified() {
        tracing::warn!("pods cannot reach the server at {}: set --advertise-address", advertised.address);
        return Ok(());
    }
    // Who leads knows which of the others are there.
    if !app.store.raw().group().borrow().leads() {
        return Ok(());
    }
    let addresses = addresses(app, advertised);
    replace(app, "", "endpoints", endpoints(&addresses, advertised.port)).await?;
    replace(app, "discovery.k8s.io", "endpointslices", endpoint_slice(&addresses, advertised.port)).await
}

/// Where the API is served: by this server, and by those others that it hears of. Endpoints of one service share a port, so
/// a server at another one is reached by those only who know it.
fn addresses(app: &App, advertised: Advertised) -> Vec<IpAddr> {
    let group = app.store.raw().group().borrow().clone();
    let known = app.peers.addresses(&app.store.raw().snapshot().members());
    let there = known.iter().filter(|(id, _)| group.active.contains(id));
    let address = |(_, url): (_, &String)| url.strip_prefix("https://")?.parse::<SocketAddr>().ok();
    let others = there.filter_map(address).filter(|address| address.port() == advertised.port);
    let mut all: BTreeSet<IpAddr> = others.map(|address| address.ip()).collect();
    all.retain(|address| address.is_ipv4() == advertised.address.is_ipv4());
    all.insert(advertised.address);
    all.into_iter().collect()
}

/// The range of services is the cluster's for good: addresses have been given out of it.
fn same_range(app: &App) -> Result<(), Error> {
    let (kind, _) = object("", "services", json!({}))?;
    let first = app.ranges.services.nth(1).to_string();
    let stored = app
        .find(kind, "default", "kubernetes")
        .map_err(|status| Error::Bootstrap { object: "services kubernetes".into(), what: status.message })?;
    let address = stored.as_ref().and_then(|s| s["spec"]["clusterIP"].as_str()).unwrap_or(&first);
    if address == first {
        return Ok(());
    }
    let what = "this data directory's cluster has its services in another range; start it with that one";
    Err(Error::Flag { flag: "service-cidr", value: app.ranges.services.to_string(), what })
}

/// Makes again what somebody deletes or changes, for as long as the server runs.
pub async fn keep(app: Arc<App>, advertised: Advertised) {
    let Some(ranges) = watched() else { return };
    let mut group = app.store.raw().group();
    loop {
        group.mark_unchanged();
        let watch = |range: &keys::Range| app.store.watch(range.start.clone(), range.end.clone(), 0);
        // Watched before the objects are looked at, so that no change falls in between.
        let Ok(mut watchers) = ranges.iter().map(watch).collect::<Result<Vec<_>, _>>() else { return };
        if let Err(error) = run(&app, advertised).await {
            tracing::warn!(%error, "trying again");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let changes = watchers.iter_mut().map(|watcher| Box::pin(watcher.next()));
        tokio::select! {
            (event, ..) = futures_util::future::select_all(changes) => {
                if let Err(store::WatchError::Closed) = event {
                    return;
                }
            }
            changed = group.changed() => if changed.is_err() { return },
        }
    }
}

/// The keys of all that [`run`] makes. None when a kind is not served, which [`run`] has reported.
fn watched() -> Option<Vec<keys::Range>> {
    let key = |group: &str, plural: &str, namespace: &str, name: &str| {
        Some(keys::Range::key(keys::object(by_plural(group, "v1", plural)?, namespace, name)))
    };
    let namespaces = NAMESPACES.iter().map(|name| key("", "namespaces", "", name));
    let rest = [("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices")];
    namespaces.chain(rest.map(|(group, plural)| key(group, plural, "default", "kubernetes"))).collect()
}

fn service(app: &App, advertised: Advertised) -> Value {
    json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": app.ranges.services.nth(1).to_string(),
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": advertised.port}],
            "sessionAffinity": "None",
        },
    })
}

fn endpoints(addresses: &[IpAddr], port: u16) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    })
}

fn endpoint_slice(addresses: &[IpAddr], port: u16) -> Value {
    let endpoint = |ip: &IpAddr| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}});
    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
    json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if addresses.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// The kind, and the object in its form.
fn object(group: &str, plural: &str, mut object: Value) -> Result<(&'static Kind, Value), Error> {
    let subject = format!("{plural} {}", api::meta::name(&object));
    let fail = |what: String| Error::Bootstrap { object: subject.clone(), what };
    let kind = by_plural(group, "v1", plural).ok_or_else(|| fail("the kind is not served".into()))?;
    body::check(kind, &mut object, Vec::new(), FieldValidation::Ignore).map_err(|s| fail(s.message))?;
    Ok((kind, object))
}

fn fail(kind: &Kind, object: &Value, status: Status) -> Error {
    Error::Bootstrap { object: format!("{} {}", kind.resource(), api::meta::name(object)), what: status.message }
}

async fn ensure(app: &App, group: &str, plural: &str, namespace: &str, value: Value) -> Result<(), Error> {
    let (kind, value) = object(group, plural, value)?;
    let found = app.find(kind, namespace, api::meta::name(&value));
    if found.map_err(|status| fail(kind, &value, status))?.is_some() {
        return Ok(());
    }
    match app.create(kind, namespace, value.clone(), DryRun::No).await {
        Ok(_) => Ok(()),
        // Another server was quicker.
        Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
        Err(status) => Err(fail(kind, &value, status)),
    }
}

/// Like [`ensure`], in the default namespace, and brings an existing object up to date.
async fn replace(app: &App, group: &str, plural: &str, value: Value) -> Result<(), Error> {
    ensure(app, group, plural, "default", value.clone()).await?;
    let (kind, value) = object(group, plural, value)?;
    let spot = Spot { kind, namespace: "default", name: api::meta::name(&value), dry_run: DryRun::No };
    let updated = app.update(spot, |old| admit::update(kind, value.clone(), old, Part::Main)).await;
    updated.map(drop).map_err(|status| fail(kind, &value, status))
}
