//! Requests to one server, and what their answers mean.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Client, Method, RequestBuilder, Response, header};
use serde_json::{Value as Json, json};

use super::history::{Change, Item, Kind, Name, Outcome, Request, Revision, Told, Value};

/// Where all the config maps of a run are.
pub const NAMESPACE: &str = "faults";

/// A connection to a host that is cut off comes to nothing.
const CONNECT: Duration = Duration::from_secs(1);
/// A link that is dead is given up after both.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A request that is given up takes its connection with it.
    Http1,
    Http2,
}

/// The administrator's way in, out of a kubeconfig.
#[derive(Clone)]
pub struct Access {
    ca: Vec<u8>,
    identity: Vec<u8>,
}

impl Access {
    pub fn read(kubeconfig: &Path) -> Result<Access> {
        let text = fs::read_to_string(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
        let data = |name: &str| -> Result<Vec<u8>> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            let line = line.with_context(|| format!("{}: no {name}", kubeconfig.display()))?;
            Ok(BASE64_STANDARD.decode(line.trim())?)
        };
        let identity = [data("client-certificate-data")?, data("client-key-data")?].join(&b'\n');
        Ok(Access { ca: data("certificate-authority-data")?, identity })
    }

    /// A pool of connections of its own, to all servers.
    pub fn client(&self, protocol: Protocol) -> Result<Client> {
        // All users of TLS in this process have one provider; a second one in its place is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&self.ca)?)
            .identity(reqwest::Identity::from_pem(&self.identity)?)
            .no_proxy()
            .connect_timeout(CONNECT)
            .tcp_nodelay(true);
        let client = match protocol {
            Protocol::Http1 => client.http1_only(),
            Protocol::Http2 => client
                .http2_keep_alive_interval(KEEP_ALIVE)
                .http2_keep_alive_timeout(KEEP_ALIVE)
                .http2_keep_alive_while_idle(true),
        };
        Ok(client.build()?)
    }
}

/// A list of all names takes a few pages of this size.
const PAGE: usize = 7;

fn collection(server: &str) -> String {
    format!("https://{server}:6443/api/v1/namespaces/{NAMESPACE}/configmaps")
}

fn text(name: Name) -> String {
    format!("k{name}")
}

fn config_map(name: Name, value: Value, at: Option<Revision>) -> Json {
    let mut metadata = json!({ "name": text(name) });
    if let Some(revision) = at {
        metadata["resourceVersion"] = revision.to_string().into();
    }
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "value": value.to_string() } })
}

/// Sends a request to the server at an address, and says what came of it.
pub async fn perform(client: &Client, server: &str, request: &Request, patience: Duration) -> Outcome {
    let answer = match request {
        Request::Pages => pages(client, server, patience).await,
        _ => exchange(client, server, request, patience).await,
    };
    match answer {
        Ok(Some((code, body))) => {
            outcome(request, code, &body).unwrap_or_else(|| Outcome::Odd(format!("{code}: {body}")))
        }
        Ok(None) | Err(_) => Outcome::Unknown,
    }
}

/// The answer's code and body. None if it says that nothing is known.
async fn exchange(
    client: &Client,
    server: &str,
    request: &Request,
    patience: Duration,
) -> reqwest::Result<Option<(u16, Json)>> {
    let all = collection(server);
    let one = |name: &Name| format!("{all}/{}", text(*name));
    let (method, url, kind, body) = match request {
        Request::Create { name, value } => {
            (Method::POST, all, "application/json", Some(config_map(*name, *value, None)))
        }
        Request::Update { name, value, at } => {
            (Method::PUT, one(name), "application/json", Some(config_map(*name, *value, *at)))
        }
        Request::Patch { name, value } => {
            let patch = json!({ "data": { "value": value.to_string() } });
            (Method::PATCH, one(name), "application/merge-patch+json", Some(patch))
        }
        Request::Delete { name, at } => {
            let options = at.map(|at| {
                json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "resourceVersion": at.to_string() } })
            });
            (Method::DELETE, one(name), "application/json", options)
        }
        Request::Get { name } => (Method::GET, one(name), "", None),
        Request::List | Request::Pages => (Method::GET, all, "", None),
    };
    let mut builder = client.request(method, url).timeout(patience).header(header::ACCEPT, "application/json");
    if let Some(body) = body {
        builder = builder.header(header::CONTENT_TYPE, kind).body(body.to_string());
    }
    answer(builder).await
}

async fn answer(request: RequestBuilder) -> reqwest::Result<Option<(u16, Json)>> {
    let response = request.send().await?;
    let code = response.status().as_u16();
    let body = response.bytes().await?;
    if code == 429 || code >= 500 {
        return Ok(None);
    }
    let parsed = serde_json::from_slice(&body);
    Ok(Some((code, parsed.unwrap_or_else(|_| Json::String(String::from_utf8_lossy(&body).into_owned())))))
}

/// Several pages put together, as one answer.
async fn pages(client: &Client, server: &str, patience: Duration) -> reqwest::Result<Option<(u16, Json)>> {
    let (mut whole, mut next) = (Vec::new(), String::new());
    loop {
        let url = format!("{}?limit={PAGE}&continue={next}", collection(server));
        let (code, mut page) = match answer(client.get(url).timeout(patience)).await? {
            Some((200, page)) => (200, page),
            // What the next page is of has been forgotten: that says nothing.
            Some((410, _)) if !next.is_empty() => return Ok(None),
            other => return Ok(other),
        };
        if let Some(items) = page["items"].as_array_mut() {
            whole.append(items);
        }
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            page["items"] = whole.into();
            return Ok(Some((code, page)));
        }
    }
}

/// None if it makes no sense.
fn outcome(request: &Request, code: u16, body: &Json) -> Option<Outcome> {
    let reason = body["reason"].as_str().unwrap_or_default();
    match (request, code, reason) {
        (Request::Create { .. }, 201, _) | (Request::Update { .. } | Request::Patch { .. }, 200, _) => {
            Some(Outcome::Wrote(item(body)?.1))
        }
        (Request::Create { .. }, 409, "AlreadyExists") => Some(Outcome::AlreadyExists),
        (Request::Update { .. } | Request::Patch { .. } | Request::Delete { .. }, 409, "Conflict") => {
            Some(Outcome::Conflict)
        }
        (Request::Update { .. } | Request::Patch { .. } | Request::Delete { .. }, 404, "NotFound") => {
            Some(Outcome::NotFound)
        }
        (Request::Delete { .. }, 200, _) => Some(Outcome::Deleted(uid(body["details"]["uid"].as_str()?)?)),
        (Request::Get { .. }, 200, _) => Some(Outcome::Got(Some(item(body)?.1))),
        (Request::Get { .. }, 404, "NotFound") => Some(Outcome::Got(None)),
        (Request::List | Request::Pages, 200, _) => {
            let items = body["items"].as_array()?.iter().filter_map(item).collect::<BTreeMap<_, _>>();
            Some(Outcome::Listed(revision(&body["metadata"])?, items))
        }
        _ => None,
    }
}

fn revision(metadata: &Json) -> Option<Revision> {
    metadata["resourceVersion"].as_str()?.parse().ok()
}

fn uid(text: &str) -> Option<u128> {
    u128::from_str_radix(&text.replace('-', ""), 16).ok()
}

/// A config map of ours; the cluster has others.
fn item(object: &Json) -> Option<(Name, Item)> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str()?.strip_prefix('k')?.parse().ok()?;
    let (uid, value) = (uid(metadata["uid"].as_str()?)?, object["data"]["value"].as_str()?.parse().ok()?);
    Some((name, Item { revision: revision(metadata)?, uid, value }))
}

/// Opens a watch of everything after a revision.
pub async fn watch(client: &Client, server: &str, after: Revision, seconds: u64) -> Result<Response> {
    let url = format!(
        "{}?watch=true&allowWatchBookmarks=true&resourceVersion={after}&timeoutSeconds={seconds}",
        collection(server)
    );
    let response = client.get(url).send().await?;
    let code = response.status().as_u16();
    if code == 200 {
        return Ok(response);
    }
    bail!("{code}")
}

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Told(Told),
    /// The revision is too old, or not there yet, or the server ends: list again or resume.
    Error(u64),
    /// Of an object that is not ours.
    Other,
}

/// One line of a watch.
pub fn line(bytes: &[u8]) -> Result<Line> {
    let event: Json = serde_json::from_slice(bytes)?;
    let object = &event["object"];
    let kind = match event["type"].as_str().unwrap_or_default() {
        "ADDED" => Kind::Added,
        "MODIFIED" => Kind::Modified,
        "DELETED" => Kind::Deleted,
        "BOOKMARK" => {
            let revision = revision(&object["metadata"]).with_context(|| format!("a bookmark without one: {event}"))?;
            return Ok(Line::Told(Told::Progress(revision)));
        }
        "ERROR" => return Ok(Line::Error(object["code"].as_u64().unwrap_or_default())),
        _ => return Err(anyhow!("an event of no known type: {event}")),
    };
    Ok(item(object).map_or(Line::Other, |(name, item)| Line::Told(Told::Change(Change { kind, name, item }))))
}

/// What a server says of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The host of the leader, if there is one.
    pub leader: Option<String>,
    /// Hosts, and whether each votes.
    pub members: BTreeMap<String, bool>,
}

fn host(member: &Json) -> String {
    let url = member["url"].as_str().unwrap_or_default();
    url.trim_start_matches("https://").split(':').next().unwrap_or_default().to_owned()
}

const STATUS: &str = "/minik8s/v1/status";

/// The hosts of those servers that a server knows to be there.
pub async fn heard(client: &Client, server: &str) -> Result<Vec<String>> {
    let answer: Json = get(client, server, STATUS).await?.json().await?;
    let members = answer["members"].as_array().with_context(|| format!("no members in {answer}"))?;
    Ok(members.iter().filter(|member| member["heard"] == true).map(host).collect())
}

pub async fn status(client: &Client, server: &str) -> Result<Status> {
    let answer: Json = get(client, server, STATUS).await?.json().await?;
    let members = answer["members"].as_array().with_context(|| format!("no members in {answer}"))?;
    let leader = members.iter().find(|member| member["id"] == answer["leader"]).map(host);
    let votes = |member: &Json| (host(member), member["voter"] == true);
    Ok(Status { leader, members: members.iter().map(votes).collect() })
}

/// Whether a server says that it is ready.
pub async fn ready(client: &Client, server: &str) -> Result<()> {
    get(client, server, "/readyz").await.map(drop)
}

async fn get(client: &Client, server: &str, path: &str) -> Result<Response> {
    let response = client.get(format!("https://{server}:6443{path}")).timeout(Duration::from_secs(2)).send().await?;
    Ok(response.error_for_status()?)
}

pub async fn make_namespace(client: &Client, server: &str) -> Result<()> {
    let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }).to_string();
    let request = client.post(format!("https://{server}:6443/api/v1/namespaces")).body(body);
    let request = request.timeout(Duration::from_secs(5)).header(header::CONTENT_TYPE, "application/json");
    request.send().await?.error_for_status()?;
    Ok(())
}

/// Bytes of an object that is written only for its size.
const BULK: usize = 900_000;

/// Writes about as much as one object holds, under a name that is not of the history. The same value again changes nothing.
pub async fn write_bulk(client: &Client, server: &str, value: Value) -> Result<()> {
    let mut data = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "bulk" } });
    data["data"] = json!({ "value": value.to_string(), "bulk": "x".repeat(BULK) });
    let request = client.put(format!("{}/bulk", collection(server))).header(header::CONTENT_TYPE, "application/json");
    let answer = request.timeout(Duration::from_secs(2)).body(data.to_string()).send().await?;
    if answer.status() == 404 {
        let request = client.post(collection(server)).header(header::CONTENT_TYPE, "application/json");
        request.timeout(Duration::from_secs(2)).body(data.to_string()).send().await?.error_for_status()?;
        return Ok(());
    }
    answer.error_for_status()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "00000000-0000-0000-0000-000000000007";

    fn object(revision: &str) -> Json {
        json!({
            "metadata": { "name": "k3", "uid": UID, "resourceVersion": revision },
            "data": { "value": "5" },
        })
    }

    #[test]
    fn what_answers_mean() {
        let item = Item { revision: 9, uid: 7, value: 5 };
        let refused = |reason: &str| json!({ "kind": "Status", "reason": reason });
        let (create, get) = (Request::Create { name: 3, value: 5 }, Request::Get { name: 3 });
        let delete = Request::Delete { name: 3, at: None };
        let items = json!({ "metadata": { "resourceVersion": "12" }, "items": [
            object("9"), { "metadata": { "name": "kube-root-ca.crt" } },
        ] });
        for (request, code, body, want) in [
            (&create, 201, object("9"), Some(Outcome::Wrote(item))),
            (&create, 409, refused("AlreadyExists"), Some(Outcome::AlreadyExists)),
            (&create, 404, refused("NotFound"), None),
            (&delete, 200, json!({ "details": { "uid": UID } }), Some(Outcome::Deleted(7))),
            (&delete, 404, refused("NotFound"), Some(Outcome::NotFound)),
            (&delete, 409, refused("Conflict"), Some(Outcome::Conflict)),
            (&get, 200, object("9"), Some(Outcome::Got(Some(item)))),
            (&get, 404, refused("NotFound"), Some(Outcome::Got(None))),
            (&get, 403, refused("Forbidden"), None),
            (&Request::List, 200, items, Some(Outcome::Listed(12, BTreeMap::from([(3, item)])))),
        ] {
            assert_eq!(outcome(request, code, &body), want, "{request:?} {code} {body}");
        }
    }

    #[test]
    fn what_a_watch_tells() {
        let item = Item { revision: 9, uid: 7, value: 5 };
        let say = |kind: &str, object: Json| line(json!({ "type": kind, "object": object }).to_string().as_bytes());
        let change = Change { kind: Kind::Deleted, name: 3, item };
        assert_eq!(say("DELETED", object("9")).unwrap(), Line::Told(Told::Change(change)));
        let bookmark = json!({ "metadata": { "resourceVersion": "10" } });
        assert_eq!(say("BOOKMARK", bookmark).unwrap(), Line::Told(Told::Progress(10)));
        assert_eq!(say("ERROR", json!({ "code": 410 })).unwrap(), Line::Error(410));
        assert_eq!(say("ADDED", json!({ "metadata": { "name": "kube-root-ca.crt" } })).unwrap(), Line::Other);
        assert!(say("OTHER", Json::Null).is_err() && line(b"{").is_err());
    }
}
