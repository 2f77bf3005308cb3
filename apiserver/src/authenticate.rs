//! Who asks: a client certificate of the cluster's CA, a service account's token, or nobody.

use std::sync::Arc;

use api::status::Status;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{clock, encryption::Vault, pki::TokenKey};

pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// The issuer and the default audience of service-account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A token longer than this is not one of ours.
const MAX_TOKEN: usize = 8 << 10;

/// A user as the rest of the pipeline knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
    pub uid: String,
}

impl Identity {
    /// A part of the server itself, or an administrator: may do everything.
    pub fn master(user: impl Into<String>) -> Self {
        Self { user: user.into(), groups: vec![MASTERS.into(), AUTHENTICATED.into()], uid: String::new() }
    }

    pub fn anonymous() -> Self {
        Self { user: "system:anonymous".into(), groups: vec![UNAUTHENTICATED.into()], uid: String::new() }
    }

    /// The common name is the user, the organizations are the groups. The caller has verified the chain.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let organizations = certificate.subject().iter_organization();
        let mut groups: Vec<String> = organizations.filter_map(|o| Some(o.as_str().ok()?.to_owned())).collect();
        groups.push(AUTHENTICATED.into());
        Some(Self { user, groups, uid: String::new() })
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, for an agent.
    pub fn node(&self) -> Option<&str> {
        self.in_group(NODES).then(|| self.user.strip_prefix("system:node:")).flatten()
    }
}

/// How a request reached us.
#[derive(Clone)]
pub enum Peer {
    /// A call from inside this process, by somebody it trusts.
    InProcess(Arc<Identity>),
    /// A TLS connection, with the identity of its client certificate if it showed one.
    Tls(Option<Arc<Identity>>),
}

/// What a service-account token states.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq, Clone)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

/// The identity behind a request. `Ok` with [`Identity::anonymous`] when it shows no credentials; credentials that do
/// not hold are an error even where nobody needs any.
pub fn authenticate(peer: &Peer, headers: &HeaderMap, keys: &TokenKey, store: &Vault) -> Result<Arc<Identity>, Status> {
    let identity = match peer {
        Peer::InProcess(identity) | Peer::Tls(Some(identity)) => identity.clone(),
        Peer::Tls(None) => match bearer(headers) {
            Some(token) => {
                Arc::new(service_account(token, keys, store, clock::seconds())?.ok_or_else(Status::unauthorized)?)
            }
            None => Arc::new(Identity::anonymous()),
        },
    };
    impersonate(identity, headers)
}

pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// `kubectl --as`: only for those who may do everything anyway.
fn impersonate(identity: Arc<Identity>, headers: &HeaderMap) -> Result<Arc<Identity>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let asked = headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
    if !asked {
        return Ok(identity);
    }
    let Some(user) = text("impersonate-user") else {
        return Err(Status::bad_request("requested impersonation without a user: set Impersonate-User"));
    };
    if !identity.in_group(MASTERS) {
        let why = format!(
            "users \"{user}\" is forbidden: User \"{}\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            identity.user
        );
        return Err(Status::new(api::status::Reason::Forbidden, why));
    }
    let mut groups: Vec<String> =
        headers.get_all("impersonate-group").iter().filter_map(|v| Some(v.to_str().ok()?.to_owned())).collect();
    if let Some((namespace, _)) = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        groups.extend([SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]);
    }
    let rest = if user == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|g| g == rest) {
        groups.push(rest.into());
    }
    let uid = text("impersonate-uid").unwrap_or_default().to_owned();
    Ok(Arc::new(Identity { user: user.to_owned(), groups, uid }))
}

pub fn sign(keys: &TokenKey, claims: &Claims) -> String {
    let header = serde_json::json!({"alg": "ES256", "kid": keys.id()});
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let claims = serde_json::to_vec(claims).expect("claims are plain data");
    let message = format!("{}.{}", part(header.to_string().as_bytes()), part(&claims));
    let signature = part(&keys.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The claims of a token that we signed and that holds at `now`, for our own audience.
pub fn verify(token: &str, keys: &TokenKey, now: i64) -> Option<Claims> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
    // The header is part of what is signed, but the algorithm is ours to say, never the token's.
    let header: Value = serde_json::from_slice(&part(header)?).ok()?;
    if header["alg"] != "ES256" || !keys.verify(message.as_bytes(), &part(signature)?) {
        return None;
    }
    let claims: Claims = serde_json::from_slice(&part(claims)?).ok()?;
    (claims.iss == ISSUER && claims.nbf <= now && now < claims.exp && claims.aud.iter().any(|a| a == ISSUER))
        .then_some(claims)
}

fn service_account(token: &str, keys: &TokenKey, store: &Vault, now: i64) -> Result<Option<Identity>, Status> {
    let Some(Claims { bound, .. }) = verify(token, keys, now) else { return Ok(None) };
    let Bound { namespace, serviceaccount: Reference { name, uid }, pod } = bound;
    let snapshot = store.snapshot();
    let alive = |resource: &str, name: &str, uid: &str| {
        let key = format!("/registry/{resource}/{namespace}/{name}");
        let Some(kv) = snapshot.get(key.as_bytes())? else { return Ok(false) };
        let object: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        Ok::<_, Status>(object["metadata"]["uid"] == uid)
    };
    let mut all_alive = alive("serviceaccounts", &name, &uid)?;
    if let Some(pod) = pod {
        all_alive = all_alive && alive("pods", &pod.name, &pod.uid)?;
    }
    if !all_alive {
        return Ok(None);
    }
    let groups = vec![SERVICE_ACCOUNTS.into(), format!("{SERVICE_ACCOUNTS}:{namespace}"), AUTHENTICATED.into()];
    Ok(Some(Identity { user: format!("system:serviceaccount:{namespace}:{name}"), groups, uid }))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::pki::{Pki, Subject};

    fn keys(dir: &Path) -> TokenKey {
        let subject =
            Subject { data_dir: dir, sans: BTreeSet::new(), url: String::new(), token: None, now: 1_800_000_000 };
        Pki::load(&subject).unwrap().service_accounts
    }

    fn claims() -> Claims {
        let account = Reference { name: "a".into(), uid: "u".into() };
        let bound = Bound { namespace: "n".into(), serviceaccount: account, pod: None };
        let (iss, sub) = (ISSUER.to_owned(), "system:serviceaccount:n:a".to_owned());
        Claims { aud: vec![iss.clone()], iss, sub, exp: 200, iat: 100, nbf: 100, bound }
    }

    #[test]
    fn tokens_hold_only_whole_signed_and_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        let token = sign(&keys, &claims());
        assert_eq!(verify(&token, &keys, 150), Some(claims()));
        assert_eq!(verify(&token, &keys, 99), None, "before its time");
        assert_eq!(verify(&token, &keys, 200), None, "expired");
        assert_eq!(verify(&sign(&keys, &Claims { aud: vec!["other".into()], ..claims() }), &keys, 150), None);
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let forged = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&Claims { exp: 900, ..claims() }).unwrap());
        let unsigned = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for bad in ["", "a.b.c", &format!("{header}.{forged}.{signature}"), &format!("{unsigned}.{forged}.")] {
            assert_eq!(verify(bad, &keys, 150), None, "{bad}");
        }
        let other = tempfile::tempdir().unwrap();
        assert_eq!(verify(&token, &self::keys(other.path()), 150), None, "another cluster's key");
    }

    #[test]
    fn impersonation_is_for_masters() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", "system:serviceaccount:n:a".parse().unwrap());
        headers.append("impersonate-group", "g".parse().unwrap());
        let seen = impersonate(Arc::new(Identity::master("root")), &headers).unwrap();
        assert_eq!(seen.user, "system:serviceaccount:n:a");
        assert_eq!(seen.groups, ["g", "system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]);
        let node = Identity { user: "system:node:a".into(), groups: vec![NODES.into()], uid: String::new() };
        assert_eq!(node.node(), Some("a"));
        assert_eq!(impersonate(Arc::new(node), &headers).unwrap_err().code, 403);
    }
}
