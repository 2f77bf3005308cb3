//! Servers that come and go: a further one joins as a learner and gets a vote when it has caught up; one that is removed
//! is told so. Every change is made by the server that leads; the others pass it on.
//!
//! Invariant: a member's number is never used twice, and one that has been removed never comes back.
//! Invariant: at one address there is one member at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use api::status::{Reason, Status};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Compare, Group, MEMBERS, MemberChange, MemberInfo, Op, Operand, Relation, Txn, member_key, prefix_end};
use tokio::time::Instant;

use crate::{
    App, Config, Error, advertise_address,
    authenticate::{Identity, MASTERS, bearer},
    body, clock, entropy, hostname,
    join::same_secret,
    negotiate::Form,
    objects::store_failure,
    paths, peers, pki, present,
};

pub mod etcd;

/// What a server is told that has been removed.
pub const REMOVED: &str =
    "this server has been removed from its cluster: to join again it needs an empty --data-dir, --join and --token";

/// How long a change of members is tried: an election may lie in between.
const CHANGE_WAIT: Duration = Duration::from_secs(20);
/// How long the one that leads may take to say whom it hears of: less than whoever looks at the status waits.
const STATUS_WAIT: Duration = Duration::from_secs(1);
/// Between two attempts, and two looks at whether a learner has caught up.
const PAUSE: Duration = Duration::from_millis(100);
/// What is written of members changes a few times in their lives: whoever finds it changed this often in a row is not unlucky.
const REVISIONS: usize = 8;

/// What a server says that wants to join.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Application {
    pub name: String,
    pub url: String,
    /// Its flags of these names. They are the whole cluster's, so they must be the same on every server.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: String,
}

impl Application {
    /// Of a server with these settings.
    pub fn of(config: &Config) -> Application {
        let address = advertise_address(config);
        Application {
            name: hostname().unwrap_or_else(|| address.to_string()),
            url: format!("https://{}", SocketAddr::new(address, config.bind.port())),
            cluster_cidr: config.cluster_cidr.clone(),
            service_cidr: config.service_cidr.clone(),
            cluster_dns: config.cluster_dns.to_string(),
        }
    }
}

impl Application {
    /// With what is the whole cluster's.
    fn of_cluster(app: &App) -> Application {
        Application {
            name: String::new(),
            url: String::new(),
            cluster_cidr: app.network.cluster_cidr.to_string(),
            service_cidr: app.ranges.services.to_string(),
            cluster_dns: app.ranges.dns.to_string(),
        }
    }
}

/// Of what it is answered, the part that other servers need.
#[derive(Deserialize)]
struct Admitted {
    member: String,
}

/// What it is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// In hexadecimal, as JSON's numbers are too short.
    pub member: String,
    /// Under the data directory, by name: what makes it one of this cluster's servers.
    pub files: BTreeMap<String, String>,
}

/// Lets a further server in.
pub async fn join(app: &App, identity: &Identity, request: Request<Body>) -> Result<Response<Body>, Status> {
    let wanted = app.pki.server_token.to_string();
    let given = bearer(request.headers());
    if !given.is_some_and(|given| same_secret(given, &wanted)) && !identity.in_group(MASTERS) {
        let agents = given.is_some_and(|given| same_secret(given, &app.pki.join_token.to_string()));
        let why = if agents {
            "this --token is the agents': a server needs the one in the file server-token of another server's data directory"
        } else {
            "--token is wrong: a server needs the one in the file server-token of another server's data directory"
        };
        return Err(Status::new(Reason::Unauthorized, why));
    }
    let bytes = body::read(request.into_body()).await?;
    let application = read(&bytes)?;
    if let Some(answer) = pass_on(app, (Method::POST, paths::SERVERS), bytes).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    same_networks(app, &application)?;
    // First, as a server that cannot be given them must not become a member each time that it asks.
    let files = pki::shared_files(&app.data_dir).map_err(Status::internal)?;
    let id = admit_at(app, application).await?;
    let admission = Admission { member: format!("{id:016x}"), files };
    Ok(present::value(StatusCode::OK, Form::JSON, &json!(admission)))
}

/// Notes where a server is that nobody has reached yet, by its number.
pub async fn place(app: &App, which: &str, request: Request<Body>) -> Result<Response<Body>, Status> {
    let bytes = body::read(request.into_body()).await?;
    let path = paths::server(which);
    if let Some(answer) = pass_on(app, (Method::PUT, &path), bytes.clone()).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    let Application { name, url, .. } = read(&bytes)?;
    let id = number(which)?;
    let _one = app.changing.lock().await;
    look_anew(app).await?;
    check_place(app, &url)?;
    let placed = |mut known: BTreeMap<u64, MemberInfo>| {
        let info = known.remove(&id).filter(|info| !info.removed).ok_or_else(|| Status::gone(REMOVED))?;
        if let Some(other) = known.values().find(|other| is_at(other, &url)) {
            return Err(Status::bad_request(format!("{url} is the address of another server, {:?}", other.name)));
        }
        Ok(MemberInfo { name: name.clone(), peer_urls: vec![url.clone()], ..info })
    };
    revise(app, id, placed).await??;
    Ok(present::value(StatusCode::OK, Form::JSON, &json!({"member": which})))
}

/// Tells the servers that this one has joined where it is now; answers what is in the way of that.
pub async fn tell_where(app: &App) -> Result<Option<String>, Error> {
    let application = Application { name: app.name.clone(), url: app.url(), ..Application::of_cluster(app) };
    let body = Bytes::from(serde_json::to_vec(&application).unwrap_or_default());
    let path = paths::server(&format!("{:016x}", app.store.raw().status().member_id));
    let mut trouble = None;
    for server in &app.join {
        match peers::post(app, server, (Method::PUT, &path), body.clone()).await {
            Ok(_) => return Ok(None),
            Err(status) if matches!(status.reason, Reason::Gone | Reason::BadRequest) => {
                return Err(Error::Place { server: server.clone(), what: status.message });
            }
            Err(status) => trouble = Some(status.message),
        }
    }
    Ok(trouble)
}

fn read(application: &[u8]) -> Result<Application, Status> {
    serde_json::from_slice(application)
        .map_err(|e| Status::bad_request(format!("what a server says of itself cannot be read: {e}")))
}

fn number(which: &str) -> Result<u64, Status> {
    u64::from_str_radix(which, 16).map_err(|_| Status::bad_request(format!("{which:?} is no number")))
}

/// Whether a server is written down to be there.
fn is_at(info: &MemberInfo, url: &str) -> bool {
    !info.removed && info.peer_urls.iter().any(|known| known == url)
}

/// Refuses an address at which the others cannot reach a server, as far as that shows here.
fn check_place(app: &App, url: &str) -> Result<(), Status> {
    if host(url).is_none() {
        return Err(Status::bad_request(format!("{url:?} is not of the form https://HOST:PORT")));
    }
    let (ours, own) = (app.url(), |url: &str| host(url).is_some_and(is_own));
    match (own(url), own(&ours)) {
        (true, false) => Err(Status::bad_request(format!(
            "at {url} only the new server itself finds it: give it an address that the others reach by --advertise-address"
        ))),
        (false, true) => Err(Status::bad_request(format!(
            "this cluster's server is at {ours}, where only it itself finds it: start it again with an --advertise-address that \
             the others reach"
        ))),
        (true, true) | (false, false) => Ok(()),
    }
}

/// Whether everybody finds himself there.
fn is_own(host: &str) -> bool {
    host.parse().is_ok_and(|address: IpAddr| address.is_loopback() || address.is_unspecified())
}

fn same_networks(app: &App, application: &Application) -> Result<(), Status> {
    let ours = Application::of_cluster(app);
    for (flag, ours, theirs) in [
        ("cluster-cidr", ours.cluster_cidr, &application.cluster_cidr),
        ("service-cidr", ours.service_cidr, &application.service_cidr),
        ("cluster-dns", ours.cluster_dns, &application.cluster_dns),
    ] {
        if ours != *theirs {
            return Err(Status::bad_request(format!("--{flag} {theirs}: this cluster has {ours}; give the same")));
        }
    }
    Ok(())
}

/// Removes a server, by its name, its address or its number.
pub async fn remove(app: &App, which: &str) -> Result<Response<Body>, Status> {
    let deadline: Instant = clock::instant() + CHANGE_WAIT;
    loop {
        match try_remove(app, which).await {
            // Who leads and is to go has another one lead first, which then removes it.
            Err(status) if status.reason == Reason::ServiceUnavailable && clock::instant() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            tried => return tried,
        }
    }
}

async fn try_remove(app: &App, which: &str) -> Result<Response<Body>, Status> {
    let path = paths::server(which);
    if let Some(answer) = pass_on(app, (Method::DELETE, &path), Bytes::new()).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    look_anew(app).await?;
    let known = app.store.raw().snapshot().members();
    let is_meant = |id: u64, info: &MemberInfo| {
        let host = info.peer_urls.iter().any(|url| url == which || host(url) == Some(which));
        !info.removed && (info.name == which || host || format!("{id:016x}") == which)
    };
    let meant: Vec<u64> = known.iter().filter(|(id, info)| is_meant(**id, info)).map(|(id, _)| *id).collect();
    let [id] = meant[..] else {
        let there = known.values().filter(|info| !info.removed);
        let names: Vec<String> = there.map(|info| format!("{} at {}", info.name, info.peer_urls.join(", "))).collect();
        let what = if meant.is_empty() { "is no server of this cluster" } else { "is the name of several servers" };
        let message = format!("{which:?} {what}; its servers are {}", names.join(", "));
        return Err(Status::new(Reason::NotFound, message));
    };
    let _one = app.changing.lock().await;
    take_out(app, id).await?;
    Ok(present::value(StatusCode::OK, Form::JSON, &json!({"member": format!("{id:016x}")})))
}

/// Gives a server its vote, by its number.
pub async fn promote(app: &App, which: &str) -> Result<Response<Body>, Status> {
    let path = paths::server(which);
    if let Some(answer) = pass_on(app, (Method::POST, &path), Bytes::new()).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    let id = number(which)?;
    promote_one(app, id).await?;
    Ok(present::value(StatusCode::OK, Form::JSON, &json!({"member": which})))
}

async fn promote_one(app: &App, id: u64) -> Result<(), Status> {
    change(app, MemberChange::Promote(id), |group| group.voters.contains(&id)).await
}

fn host(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://")?;
    Some(authority.rsplit_once(':')?.0.trim_matches(['[', ']']))
}

/// The cluster's servers, and how this one is. Whom the others hear of only the one that leads knows, which is asked.
pub async fn status(app: &App, headers: &HeaderMap) -> Response<Body> {
    let heard = heard(app, headers).await;
    let (status, group) = (app.store.raw().status(), app.store.raw().group().borrow().clone());
    let known = app.store.raw().snapshot().members();
    let addresses = app.peers.addresses(&known);
    let member = |id: u64| {
        let info = known.get(&id);
        json!({
            "id": format!("{id:016x}"),
            "name": info.map(|info| info.name.as_str()),
            "url": addresses.get(&id),
            "voter": group.voters.contains(&id),
            "heard": heard.as_ref().map(|heard| heard.contains(&format!("{id:016x}"))),
        })
    };
    present::value(
        StatusCode::OK,
        Form::JSON,
        &json!({
            "id": format!("{:016x}", status.member_id),
            "leader": format!("{:016x}", status.leader_id),
            "term": status.term,
            "revision": status.revision,
            "appliedIndex": status.applied_index,
            "keys": status.keys,
            "logBytes": status.log_bytes,
            "bytes": status.bytes,
            "quotaBytes": status.quota_bytes,
            "alarms": app.store.raw().alarms().iter().map(|id| format!("{id:016x}")).collect::<Vec<_>>(),
            "ready": app.is_ready(),
            "members": group.ids().map(member).collect::<Vec<_>>(),
        }),
    )
}

/// The numbers of those who are there; none where that is not known.
async fn heard(app: &App, headers: &HeaderMap) -> Option<BTreeSet<String>> {
    let group = app.store.raw().group().borrow().clone();
    if group.leads() {
        let there = group.active.iter().chain([&group.member_id]);
        return Some(there.map(|id| format!("{id:016x}")).collect());
    }
    // Another server believes that this one leads: two that believe so of each other must not ask each other for ever.
    if peers::is_of_server(headers) {
        return None;
    }
    let asked = pass_on(app, (Method::GET, paths::STATUS), Bytes::new());
    let answer = tokio::time::timeout(STATUS_WAIT, asked).await.ok()?.ok()??;
    let status: Value = serde_json::from_slice(&answer).ok()?;
    // Nor does it know, where it leads no longer.
    let members: Vec<(&str, bool)> = status["members"]
        .as_array()?
        .iter()
        .map(|member| Some((member["id"].as_str()?, member["heard"].as_bool()?)))
        .collect::<Option<_>>()?;
    Some(members.into_iter().filter(|(_, heard)| *heard).map(|(id, _)| id.to_owned()).collect())
}

/// Has the server that leads answer, where that is another one.
pub async fn pass_on(app: &App, request: (Method, &str), body: Bytes) -> Result<Option<Bytes>, Status> {
    let group = app.store.raw().group().borrow().clone();
    if group.leads() {
        return Ok(None);
    }
    let addresses = app.peers.addresses(&app.store.raw().snapshot().members());
    let leader = addresses.get(&group.leader_id).ok_or_else(no_leader)?;
    peers::post(app, leader, request, body).await.map(Some)
}

fn no_leader() -> Status {
    let why =
        "no server leads the cluster at the moment, which takes a majority of those with a vote: nothing was done";
    Status::service_unavailable(why).retry_after(1)
}

fn unknown() -> Status {
    let why = "no majority of the servers has confirmed it, and it may still come to be: look at `minik8s status` once one is there";
    Status::new(Reason::Timeout, why)
}

/// Makes a new member of whoever is at an address, in the place of whoever was there before.
async fn admit_at(app: &App, application: Application) -> Result<u64, Status> {
    let _one = app.changing.lock().await;
    let Application { name, url, .. } = application;
    check_place(app, &url)?;
    // Who has just begun to lead may not have applied yet what the one before has done.
    look_anew(app).await?;
    let known = app.store.raw().snapshot().members();
    for (&before, info) in known.iter().filter(|(_, info)| is_at(info, &url)) {
        if before == app.store.raw().status().member_id {
            return Err(Status::bad_request(format!(
                "{url} is the address of this very server: give the new one its own by --advertise-address or --bind"
            )));
        }
        // One that has just died and comes back without its disk counts as there for a moment.
        if app.store.raw().group().borrow().active.contains(&before) {
            return Err(Status::service_unavailable(format!(
                "{url} is the address of the server {:?}, which is there: give the new one its own by --advertise-address or --bind",
                info.name
            ))
            .retry_after(1));
        }
        tracing::info!(
            member = format!("{before:016x}"),
            url,
            "a new server takes the place of one with an empty disk"
        );
        // Too few of the others may be there just now: whoever joins tries on.
        let later = |refused: Status| match refused.reason {
            Reason::BadRequest => Status::service_unavailable(refused.message).retry_after(1),
            _ => refused,
        };
        take_out(app, before).await.map_err(later)?;
    }
    let id = entropy::number().max(1);
    let info = MemberInfo { name, peer_urls: vec![url.clone()], ..MemberInfo::default() };
    write(app, id, &info).await?;
    change(app, MemberChange::AddLearner(id), |group| group.has(id)).await?;
    tracing::info!(member = format!("{id:016x}"), url, "a server has joined");
    Ok(id)
}

/// Removes a member, and leaves word of it.
async fn take_out(app: &App, id: u64) -> Result<(), Status> {
    change(app, MemberChange::Remove(id), |group| !group.has(id)).await?;
    let known = app.store.raw().snapshot().members().remove(&id).unwrap_or_default();
    write(app, id, &MemberInfo { removed: true, ..known }).await?;
    tracing::info!(member = format!("{id:016x}"), "a server was removed");
    Ok(())
}

/// Sees to it that this server knows what any other one has done.
async fn look_anew(app: &App) -> Result<(), Status> {
    app.store.read_barrier().await.map_err(|error| match what_is_left(error) {
        // A read changes nothing.
        Ok(Left::Nothing | Left::Proposal) => no_leader(),
        Err(status) => status,
    })
}

async fn write(app: &App, id: u64, info: &MemberInfo) -> Result<(), Status> {
    let put = Op::Put { key: member_key(id), value: info.encode(), lease: None };
    app.store.raw().txn(Txn { then: vec![put], ..Txn::default() }).await.map(drop).map_err(store_failure)
}

/// Makes one change, however often it takes, until `done` is true of the group.
async fn change(app: &App, change: MemberChange, done: impl Fn(&Group) -> bool) -> Result<(), Status> {
    let deadline: Instant = clock::instant() + CHANGE_WAIT;
    let mut group = app.store.raw().group();
    let mut left = Left::Nothing;
    loop {
        let refused = match app.store.raw().change_members(change).await {
            // In force, but perhaps not told yet to those who look at the group next.
            Ok(()) => return group.wait_for(&done).await.map(drop).map_err(|_| no_leader()),
            Err(error) => match what_is_left(error) {
                Ok(now) => {
                    left = left.max(now);
                    None
                }
                Err(status) => Some(status),
            },
        };
        let now = group.borrow().clone();
        match refused {
            _ if done(&now) => return Ok(()),
            Some(status) => return Err(status),
            None if !now.leads() || clock::instant() > deadline => {
                return Err(match left {
                    Left::Nothing => no_leader(),
                    Left::Proposal => unknown(),
                });
            }
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Writes down of a member what `decide` makes of all that is written of members; nothing, where it has a reason. It decides
/// anew when one of them was written in between: this one may be removed, which is for good, or another be where it is to be.
pub async fn revise<E>(
    app: &App,
    id: u64,
    decide: impl Fn(BTreeMap<u64, MemberInfo>) -> Result<MemberInfo, E>,
) -> Result<Result<(), E>, Status> {
    for _ in 0..REVISIONS {
        let snapshot = app.store.raw().snapshot();
        let info = match decide(snapshot.members()) {
            Ok(info) => info,
            Err(reason) => return Ok(Err(reason)),
        };
        let unchanged = Compare::Keys {
            start: Bytes::from_static(MEMBERS),
            end: Some(prefix_end(MEMBERS)),
            relation: Relation::Less,
            operand: Operand::ModRevision(snapshot.revision() as i64 + 1),
        };
        let put = Op::Put { key: member_key(id), value: info.encode(), lease: None };
        let txn = Txn { compare: vec![unchanged], then: vec![put], ..Txn::default() };
        if app.store.raw().txn(txn).await.map_err(store_failure)?.succeeded {
            return Ok(Ok(()));
        }
    }
    Err(Status::service_unavailable("what is written of servers changes all the time").retry_after(1))
}

/// What an attempt that came to nothing has left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    /// It may come to be without anybody waiting for it any more.
    Proposal,
}

/// Whether a change of members may be tried again, after what.
fn what_is_left(error: store::Error) -> Result<Left, Status> {
    use store::Error;
    match error {
        // An earlier change is under way, or another server leads.
        Error::Unavailable => Ok(Left::Nothing),
        Error::Timeout { .. } | Error::LeaderChanged { .. } => Ok(Left::Proposal),
        Error::InvalidChange { reason } => Err(Status::bad_request(reason)),
        Error::Compacted { .. }
        | Error::Future { .. }
        | Error::LeaseNotFound { .. }
        | Error::LeaseExists { .. }
        | Error::KeyNotFound
        | Error::InvalidTxn { .. }
        | Error::TooLarge { .. }
        | Error::NoSpace { .. }
        | Error::Closed
        | Error::Fatal { .. }
        | Error::Disk { .. }
        | Error::Corrupt { .. }
        | Error::Exists { .. }
        | Error::InUse { .. } => Err(store_failure(error)),
    }
}

/// Writes down where this server is, if that is not what is written.
pub async fn announce(app: &App) -> Result<(), Status> {
    let id = app.store.raw().status().member_id;
    let info = MemberInfo {
        name: app.name.clone(),
        peer_urls: vec![app.url()],
        client_urls: app.etcd_urls.clone(),
        removed: false,
    };
    let stands = |written: &MemberInfo| written.removed || *written == info;
    let decide =
        |known: BTreeMap<u64, MemberInfo>| if known.get(&id).is_some_and(stands) { Err(()) } else { Ok(info.clone()) };
    revise(app, id, decide).await.map(|_| ())
}

/// While this server leads: gives learners that have caught up their vote, and leaves word for those removed.
pub async fn tend(app: Arc<App>) {
    let mut group = app.store.raw().group();
    loop {
        let now = group.borrow_and_update().clone();
        if now.leads() {
            for id in now.learners.iter().copied().filter(|id| now.active.contains(id)) {
                // One that has not caught up is refused, and asked about again.
                if app.store.raw().change_members(MemberChange::Promote(id)).await.is_ok() {
                    tracing::info!(member = format!("{id:016x}"), "a server has caught up and has a vote now");
                }
            }
            if let Err(status) = tidy(&app).await {
                tracing::debug!(why = status.message, "the list of servers is not tidy yet");
            }
        }
        let pause = async {
            if now.leads() && !now.learners.is_empty() {
                tokio::time::sleep(PAUSE).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            changed = group.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

/// A change that was cut off half-way may have left a member written down that is none.
async fn tidy(app: &App) -> Result<(), Status> {
    let _one = app.changing.lock().await;
    look_anew(app).await?;
    let group = app.store.raw().group().borrow().clone();
    // Since it was asked to: whoever leads now may be half-way through letting one in, which is written down before it belongs.
    if !group.leads() {
        return Ok(());
    }
    let known = app.store.raw().snapshot().members();
    for id in group.ids().filter(|id| known.get(id).is_some_and(|info| info.removed)) {
        change(app, MemberChange::Remove(id), |group| !group.has(id)).await?;
    }
    for (&id, info) in known.iter().filter(|(id, info)| !info.removed && !group.has(**id)) {
        write(app, id, &MemberInfo { removed: true, ..info.clone() }).await?;
    }
    Ok(())
}

/// Ends the server where it has been removed from the group: it must not seem to be one of its servers.
pub async fn notice_removal(app: Arc<App>) {
    let mut group = app.store.raw().group();
    let me = app.store.raw().status().member_id;
    let _ = group.wait_for(|group| group.has(me)).await;
    if group.wait_for(|group| group.leader_id != 0 && !group.has(me)).await.is_ok() {
        // The others may need to hear from this one that it is gone.
        tokio::time::sleep(PAUSE * 20).await;
        app.store.raw().fail(REMOVED.to_owned());
    }
}

/// Makes the files of a server that has been let in.
pub fn admit(data_dir: &Path, admission: &Admission) -> Result<u64, String> {
    let id = u64::from_str_radix(&admission.member, 16).map_err(|_| "the server names no member".to_owned())?;
    let tls = data_dir.join("tls");
    pki::create_dir(&tls).map_err(|error| error.to_string())?;
    for (name, content) in &admission.files {
        if !pki::SHARED.contains(&name.as_str()) {
            return Err(format!("the server sends a file {name:?}, which is none of a server's"));
        }
        let path = data_dir.join(name);
        write_once(&path, content)?;
    }
    Ok(id)
}

fn write_once(path: &Path, content: &str) -> Result<(), String> {
    match fs::read_to_string(path) {
        Ok(there) if there == content => Ok(()),
        Ok(_) => Err(format!("{} is of another cluster: join with an empty --data-dir", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            pki::write_private(path, content.as_bytes()).map_err(|error| format!("write {}: {error}", path.display()))
        }
        Err(error) => Err(format!("read {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(host("https://10.0.0.1:6443"), Some("10.0.0.1"));
        assert_eq!(host("https://[fd00::1]:6443"), Some("fd00::1"));
        assert_eq!(host("10.0.0.1"), None);
        for (host, own) in [("127.0.0.1", true), ("::1", true), ("0.0.0.0", true), ("10.0.0.1", false), ("a.b", false)]
        {
            assert_eq!(is_own(host), own, "{host}");
        }
    }

    #[test]
    fn files_of_another_cluster_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let admission = |ca: &str| Admission {
            member: "00000000000000ff".into(),
            files: [("tls/ca.crt".to_owned(), ca.to_owned())].into(),
        };
        assert_eq!(admit(dir.path(), &admission("a")), Ok(255));
        assert_eq!(admit(dir.path(), &admission("a")), Ok(255), "a second attempt");
        assert!(admit(dir.path(), &admission("b")).unwrap_err().contains("tls/ca.crt is of another cluster"));
        let foreign = Admission { member: "1".into(), files: [("../x".to_owned(), String::new())].into() };
        assert!(admit(dir.path(), &foreign).unwrap_err().contains("\"../x\""));
    }

    #[test]
    fn what_a_failed_change_leaves() {
        use store::Error;
        let (operation, waited) = ("change", Duration::ZERO);
        for (error, left) in [
            (Error::Unavailable, Ok(Left::Nothing)),
            (Error::Timeout { operation, waited }, Ok(Left::Proposal)),
            (Error::LeaderChanged { operation }, Ok(Left::Proposal)),
            (Error::InvalidChange { reason: "no".into() }, Err((Reason::BadRequest, "no".into()))),
            (Error::Closed, Err((Reason::ServiceUnavailable, Error::Closed.to_string()))),
        ] {
            let shown = format!("{error:?}");
            assert_eq!(what_is_left(error).map_err(|status| (status.reason, status.message)), left, "{shown}");
        }
    }
}
