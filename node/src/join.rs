//! How a machine becomes a node of a cluster: it checks the server by the token's hash of the CA, then asks for a
//! certificate. The certificate is kept; while it is good the token is not needed again.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

/// A server that does not answer is asked again so soon, and then ever more slowly.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(5);
const JOIN: &str = "/minik8s/v1/join";
/// One question to a server.
const ANSWER: Duration = Duration::from_secs(10);
/// An address of nobody (RFC 5737), reached by the default route if there is one.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// No certificate, token answer or error is larger.
const BODY_MAX: usize = 1 << 20;

/// `m8s1.<sha256 of the CA certificate>.<secret>`
pub struct Token {
    text: String,
    ca_hash: String,
}

impl Token {
    pub fn parse(text: &str) -> Result<Token, Error> {
        let text = text.trim();
        let mut parts = text.splitn(3, '.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("m8s1"), Some(hash), Some(secret))
                if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && !secret.is_empty() =>
            {
                Ok(Token { ca_hash: hash.to_lowercase(), text: text.to_owned() })
            }
            _ => Err(Error::Refused(
                "the join token is not of the form m8s1.<hash>.<secret>: copy it whole, as the server prints it"
                    .to_owned(),
            )),
        }
    }
}

impl Token {
    /// Whether a cluster's CA, as PEM, is the one that this token is for.
    pub fn is_of(&self, ca_pem: &str) -> bool {
        first(ca_pem).is_some_and(|der| hex(&Sha256::digest(&der)) == self.ca_hash)
    }
}

/// What joining gives, and what the files of `<data-dir>/agent` hold.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
    pub ca: String,
    pub cluster: Cluster,
}

impl Identity {
    /// Certificate and key in one text, as the client wants them.
    pub fn pem(&self) -> Vec<u8> {
        format!("{}{}", self.certificate, self.key).into_bytes()
    }
}

/// What the cluster tells its nodes about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: IpAddr,
}

#[derive(Deserialize)]
struct Answer {
    certificate: String,
    ca: String,
    #[serde(flatten)]
    cluster: Cluster,
}

/// Who wants to join what.
pub struct Application<'a> {
    pub servers: &'a [String],
    pub token: Option<&'a str>,
    pub node_name: &'a str,
    pub node_ip: IpAddr,
    pub dir: PathBuf,
}

/// Whether this machine has had the node's name before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    New,
    Ours,
}

/// Why one server refuses whoever wants to join.
pub enum Refusal {
    /// Another attempt, or another server, may do better.
    Later(String),
    /// A node of this name is alive.
    Taken(String),
    /// Nothing but a human helps.
    Never(Error),
}

/// The node's certificate: the kept one if it is good, else a new one.
pub async fn identity(application: &Application<'_>) -> Result<Identity, Error> {
    let token = application.token.map(Token::parse).transpose()?;
    let kept = load(&application.dir)?;
    let name =
        if kept.as_ref().is_some_and(|kept| names(kept, application.node_name)) { Name::Ours } else { Name::New };
    if let Some(kept) = kept
        && suits(&kept, application, token.as_ref(), Timestamp::now())
    {
        return Ok(kept);
    }
    let Some(token) = token else {
        return Err(Error::Refused(
            "this node has no valid certificate yet: give --token, as `minik8s token` prints it on the server"
                .to_owned(),
        ));
    };
    let identity = join(application, &token, name).await?;
    save(&application.dir, &identity)?;
    Ok(identity)
}

/// Whether a kept certificate is this node's, of the token's CA, and has a good part of its life before it.
fn suits(kept: &Identity, application: &Application<'_>, token: Option<&Token>, now: Timestamp) -> bool {
    let Some(ca) = first(&kept.ca) else { return false };
    if token.is_some_and(|token| token.ca_hash != hex(&Sha256::digest(&ca))) {
        return false;
    }
    let Some(der) = first(&kept.certificate) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let named = names(kept, application.node_name);
    let bytes = match application.node_ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let addressed = alternatives.is_some_and(|names| {
        let own = x509_parser::extensions::GeneralName::IPAddress(&bytes);
        names.value.general_names.contains(&own)
    });
    let Life { aging, end } = life(&certificate);
    // Without a token an old certificate is better than none: it is renewed by itself.
    let fresh = now.as_second() < if token.is_some() { aging } else { end };
    named && addressed && fresh
}

/// Seconds since the epoch.
struct Life {
    /// When the last third begins, in which a certificate is renewed.
    aging: i64,
    end: i64,
}

fn life(certificate: &X509Certificate<'_>) -> Life {
    let validity = certificate.validity();
    let (from, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Life { aging: end - (end - from) / 3, end }
}

/// When the certificate of a PEM text is to be renewed; none when it cannot be read.
pub fn aging(certificate: &str) -> Option<Timestamp> {
    let der = first(certificate)?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Timestamp::from_second(life(&certificate).aging).ok()
}

/// What a server is sent for a certificate, and the key that the certificate will be for.
struct Plea {
    key: KeyPair,
    body: serde_json::Value,
}

fn plea(node_name: &str, node_ip: IpAddr) -> Result<Plea, Error> {
    let key = KeyPair::generate().map_err(|error| Error::Internal(format!("make a key: {error}")))?;
    let mut params = CertificateParams::new(vec![node_name.to_owned(), node_ip.to_string()])
        .map_err(|error| Error::Internal(format!("name the node in a certificate request: {error}")))?;
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node_name}"));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let csr = params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(|error| Error::Internal(format!("make a certificate request: {error}")))?;
    Ok(Plea { key, body: serde_json::json!({"nodeName": node_name, "nodeIP": node_ip, "csr": csr}) })
}

/// Asks for another certificate, by the one that `client` shows.
pub async fn renew(client: &client::Client, node_name: &str, node_ip: IpAddr) -> Result<Identity, Error> {
    let Plea { key, body } = plea(node_name, node_ip)?;
    let content = client::Content::json(&body).map_err(Error::Client)?;
    let answer = client.call(http::Method::POST, JOIN.to_owned(), Some(content)).await.map_err(Error::Renewal)?;
    Ok(whole(answer, &key))
}

fn whole(answer: Answer, key: &KeyPair) -> Identity {
    let Answer { certificate, ca, cluster } = answer;
    Identity { certificate, key: key.serialize_pem(), ca, cluster }
}

/// Whether a kept certificate is for this node's name.
fn names(kept: &Identity, node: &str) -> bool {
    let Some(der) = first(&kept.certificate) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let wanted = format!("system:node:{node}");
    certificate.subject().iter_common_name().any(|cn| cn.as_str() == Ok(&wanted))
}

async fn join(application: &Application<'_>, token: &Token, name: Name) -> Result<Identity, Error> {
    let Plea { key, body } = plea(application.node_name, application.node_ip)?;
    let mut pause = RETRY_FIRST;
    let mut told = String::new();
    loop {
        for server in application.servers {
            match certificate(server.trim_end_matches('/'), token, &body).await {
                Ok(answer) => return Ok(whole(answer, &key)),
                Err(Refusal::Never(error)) => return Err(error),
                Err(Refusal::Taken(why)) if name == Name::New => return Err(Error::Refused(why)),
                // The live node of this name is this one, at an address it no longer has: its lease will run out.
                Err(Refusal::Later(why) | Refusal::Taken(why)) => {
                    // The same complaint once, not every few seconds.
                    if why != told {
                        tracing::warn!(server, why, "the server cannot be joined yet; trying on");
                        told = why;
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

async fn certificate(server: &str, token: &Token, request: &serde_json::Value) -> Result<Answer, Refusal> {
    let text = ask(server, token, (JOIN, request)).await?;
    serde_json::from_str(&text).map_err(|error| {
        Refusal::Never(Error::Refused(format!("{server} answers what this version does not understand: {error}")))
    })
}

/// Sends a request to a path of a server in the name of whoever has the token, once the server has shown that it is of
/// the token's cluster.
pub async fn ask(server: &str, token: &Token, (path, request): (&str, &serde_json::Value)) -> Result<String, Refusal> {
    let later = |error: reqwest::Error| Refusal::Later(format!("{server}: {}", crate::pod::error_text(&error)));
    // Nothing secret is sent and nothing is believed before the CA's hash has been compared.
    let blind = builder().tls_danger_accept_invalid_certs(true).build().map_err(later)?;
    let answer = blind.get(format!("{server}/cacerts")).send().await.and_then(reqwest::Response::error_for_status);
    let ca = body(answer.map_err(later)?).await.map_err(later)?;
    let der = first(&ca).ok_or_else(|| Refusal::Later(format!("{server} gives no CA certificate: is it minik8s?")))?;
    let hash = hex(&Sha256::digest(&der));
    if hash != token.ca_hash {
        return Err(Refusal::Never(Error::Refused(format!(
            "{server} is of another cluster than the token: its CA has the hash {hash}, the token wants {}. Take the token \
             from that server, or correct --join",
            token.ca_hash
        ))));
    }
    let root = reqwest::Certificate::from_pem(ca.as_bytes()).map_err(later)?;
    let verified = builder().tls_certs_only([root]).build().map_err(later)?;
    let answer =
        verified.post(format!("{server}{path}")).bearer_auth(&token.text).json(request).send().await.map_err(later)?;
    let code = answer.status();
    let text = body(answer).await.map_err(later)?;
    if code.is_success() {
        return Ok(text);
    }
    let message = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("{server} answered {code}"));
    if code.is_server_error() || code == http::StatusCode::TOO_MANY_REQUESTS {
        return Err(Refusal::Later(message));
    }
    if code == http::StatusCode::CONFLICT {
        return Err(Refusal::Taken(message));
    }
    Err(Refusal::Never(Error::Refused(message)))
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(ANSWER)
}

async fn body(mut answer: reqwest::Response) -> Result<String, reqwest::Error> {
    let mut whole = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        whole.extend_from_slice(&piece);
        if whole.len() > BODY_MAX {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&whole).into_owned())
}

/// The first certificate of a PEM text, as DER.
fn first(pem: &str) -> Option<Vec<u8>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|der| der.to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const FILES: [&str; 4] = ["node.crt", "node.key", "ca.crt", "cluster.json"];

/// The kept identity; None when there is none, or not a whole one.
fn load(dir: &Path) -> Result<Option<Identity>, Error> {
    let mut texts = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => texts.push(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { operation: "read", path, source }),
        }
    }
    let [certificate, key, ca, cluster] = <[String; 4]>::try_from(texts).unwrap_or_default();
    Ok(serde_json::from_str(&cluster).ok().map(|cluster| Identity { certificate, key, ca, cluster }))
}

pub fn save(dir: &Path, identity: &Identity) -> Result<(), Error> {
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    };
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io("protect", dir))?;
    let cluster = serde_json::to_string(&identity.cluster).unwrap_or_default();
    let texts = [&identity.certificate, &identity.key, &identity.ca, &cluster];
    for (name, text) in FILES.iter().zip(texts) {
        let next = dir.join(format!("{name}.next"));
        let _ = fs::remove_file(&next);
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next);
        opened.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())).map_err(io("write", &next))?;
        fs::rename(&next, dir.join(name)).map_err(io("write", &next))?;
    }
    Ok(())
}

/// The address that this machine would use towards the first server: a connected UDP socket sends nothing, but it makes
/// the kernel choose a route.
pub async fn source_address(servers: &[String]) -> Result<IpAddr, Error> {
    let mut why = "no server is given".to_owned();
    for server in servers {
        let Some(target) = host_and_port(server) else {
            why = format!("{server:?} is not of the form https://HOST:PORT");
            continue;
        };
        let found = async {
            let address: SocketAddr = tokio::net::lookup_host(&target)
                .await?
                .next()
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address"))?;
            let ip = route(address)?;
            // Beside a server on this very machine the node is better known by the address that others would use.
            let elsewhere = if ip.is_loopback() { route(ELSEWHERE).ok() } else { None };
            Ok::<_, io::Error>(elsewhere.unwrap_or(ip))
        };
        match found.await {
            Ok(ip) => return Ok(ip),
            Err(error) => why = format!("{target}: {error}"),
        }
    }
    Err(Error::Refused(format!("this machine has no address towards the server ({why}): give --node-ip")))
}

fn route(target: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn host_and_port(server: &str) -> Option<String> {
    let url = reqwest::Url::parse(server).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};

    use super::*;

    #[test]
    fn tokens_are_checked_before_anything_is_asked() {
        let hash = "ab".repeat(32);
        assert_eq!(Token::parse(&format!(" m8s1.{hash}.s.e.c\n")).map(|t| t.ca_hash).ok(), Some(hash.clone()));
        for bad in ["", "m8s1", "m8s1.ab.c", &format!("m8s2.{hash}.x"), &format!("m8s1.{hash}."), &"x".repeat(70)] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }

    fn issued(name: &str, ip: &str) -> Identity {
        let mut params = CertificateParams::new(vec!["ca".to_owned()]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new(vec![name.to_owned(), ip.to_owned()]).expect("parameters");
        leaf.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
        leaf.not_before = rcgen::date_time_ymd(2026, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2027, 1, 1);
        Identity {
            certificate: leaf.signed_by(&key, &ca).expect("a certificate").pem(),
            key: key.serialize_pem(),
            ca: ca.pem(),
            cluster: Cluster {
                cluster_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/16".to_owned(),
                cluster_dns: IpAddr::from([10, 96, 0, 10]),
            },
        }
    }

    #[test]
    fn a_kept_certificate_is_used_while_it_suits() {
        let home = tempfile::tempdir().expect("a directory");
        assert!(load(home.path()).expect("readable").is_none());
        save(home.path(), &issued("n1", "192.0.2.1")).expect("saved");
        let mode = fs::metadata(home.path().join("node.key")).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let kept = load(home.path()).expect("readable").expect("whole");
        let hash = hex(&Sha256::digest(first(&kept.ca).expect("a CA")));
        let own = Token { text: String::new(), ca_hash: hash };
        let other = Token { text: String::new(), ca_hash: "00".repeat(32) };
        // (name, address, token, now, good)
        let table = [
            ("n1", "192.0.2.1", None, "2026-06-01T00:00:00Z", true),
            ("n1", "192.0.2.1", Some(&own), "2026-06-01T00:00:00Z", true),
            ("n1", "192.0.2.1", Some(&own), "2026-11-01T00:00:00Z", false),
            ("n1", "192.0.2.1", None, "2026-11-01T00:00:00Z", true),
            ("n1", "192.0.2.1", None, "2027-01-02T00:00:00Z", false),
            ("n1", "192.0.2.1", Some(&other), "2026-06-01T00:00:00Z", false),
            ("n2", "192.0.2.1", None, "2026-06-01T00:00:00Z", false),
            ("n1", "192.0.2.2", None, "2026-06-01T00:00:00Z", false),
        ];
        for (name, ip, token, now, good) in table {
            let application = Application {
                servers: &[],
                token: None,
                node_name: name,
                node_ip: ip.parse().expect("an address"),
                dir: PathBuf::new(),
            };
            let now = now.parse().expect("a time");
            assert_eq!(suits(&kept, &application, token, now), good, "{name} {ip} {now}");
        }
    }

    #[tokio::test]
    async fn the_route_to_the_server_gives_the_address() {
        let found = source_address(&["https://127.0.0.1:6443".to_owned()]).await.expect("an address");
        assert_eq!(found, route(ELSEWHERE).unwrap_or(IpAddr::from([127, 0, 0, 1])));
        assert!(source_address(&["nonsense".to_owned()]).await.is_err());
    }
}
