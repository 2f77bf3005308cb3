//! Reads what a pod refers to: config maps, secrets, tokens, pull credentials.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use client::{Client, Object};
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Container, Pod, Secret, Service},
};
use serde_json::Value;

use crate::{
    env::{self, NodeView, Sources, TokenKey},
    image::{Auth, Reference},
    volumes::payload,
};

/// A token with the time from which another one is wanted.
pub type Tokens = HashMap<TokenKey, (String, Timestamp)>;

/// Everything that the pod's volumes and containers refer to. A missing object is an answer; a server that does not
/// answer is an error.
pub async fn sources(
    client: &Client,
    pod: &Pod,
    services: Vec<Arc<Service>>,
    node: NodeView,
    tokens: &mut Tokens,
) -> Result<Sources, client::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let wanted = payload::references(pod);
    let mut maps: BTreeSet<String> = wanted.config_maps.into_iter().collect();
    let mut secrets: BTreeSet<String> = wanted.secrets.into_iter().collect();
    for container in containers(pod) {
        let (more_maps, more_secrets) = env::references(container);
        maps.extend(more_maps);
        secrets.extend(more_secrets);
    }
    let (config_maps, secrets) =
        tokio::try_join!(get_all::<ConfigMap>(client, namespace, maps), get_all::<Secret>(client, namespace, secrets))?;
    let now = Timestamp::now();
    for key in wanted.tokens {
        if tokens.get(&key).is_none_or(|(_, renew)| *renew <= now)
            && let Some(token) = token(client, pod, &key).await?
        {
            // Renewed at four fifths of its life, as clients read the file again from time to time.
            let renew = now + SignedDuration::from_secs(key.expiration_seconds * 4 / 5);
            tokens.insert(key, (token, renew));
        }
    }
    let tokens = tokens.iter().map(|(key, (token, _))| (key.clone(), token.clone())).collect();
    Ok(Sources { config_maps, secrets, services, tokens, node })
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

async fn get_all<K: Object>(
    client: &Client,
    namespace: &str,
    names: BTreeSet<String>,
) -> Result<HashMap<String, Option<Arc<K>>>, client::Error> {
    let all = names.into_iter().map(|name| async move {
        match client.get::<K>(namespace, &name).await {
            Ok(object) => Ok((name, Some(Arc::new(object)))),
            Err(error) if error.is_not_found() => Ok((name, None)),
            Err(error) => Err(error),
        }
    });
    Ok(try_join_all(all).await?.into_iter().collect())
}

/// A token of the pod's service account, bound to the pod; None where the API hands out none.
async fn token(client: &Client, pod: &Pod, key: &TokenKey) -> Result<Option<String>, client::Error> {
    let meta = &pod.metadata;
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: key.audience.iter().cloned().collect(),
            expiration_seconds: Some(key.expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let url = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let content = client::Content::json(&request)?;
    match client.call::<TokenRequest>(http::Method::POST, url, Some(content)).await {
        Ok(answer) => Ok(answer.status.map(|status| status.token)),
        Err(error) if error.is_transient() => Err(error),
        // The API has no such subresource, or the account is not there.
        Err(_) => Ok(None),
    }
}

/// Credentials for an image from the pod's pull secrets. What cannot be read is passed over: the pull says what is missing.
pub async fn pull_auth(client: &Client, pod: &Pod, image: &str) -> Option<Auth> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let registry = Reference::parse(image).ok()?.registry;
    for wanted in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        let Ok(secret) = client.get::<Secret>(namespace, &wanted.name).await else { continue };
        let data = secret.data.unwrap_or_default();
        let file = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
        if let Some(auth) = file.and_then(|file| credentials(&file.0, &registry)) {
            return Some(auth);
        }
    }
    None
}

/// The entry of a Docker configuration file for a registry.
fn credentials(file: &[u8], registry: &str) -> Option<Auth> {
    let file: Value = serde_json::from_slice(file).ok()?;
    let entries = file.get("auths").unwrap_or(&file).as_object()?;
    let host = |key: &str| -> String {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://");
        let host = bare.split('/').next().unwrap_or_default();
        // Docker Hub is known by several names.
        if matches!(host, "index.docker.io" | "registry-1.docker.io") {
            "docker.io".to_owned()
        } else {
            host.to_owned()
        }
    };
    let (_, entry) = entries.iter().find(|(key, _)| host(key) == registry)?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
    if let Some(token) = text("registrytoken") {
        return Some(Auth::Bearer(token));
    }
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(Auth::Basic { username, password });
    }
    let plain = String::from_utf8(STANDARD.decode(text("auth")?).ok()?).ok()?;
    let (username, password) = plain.split_once(':')?;
    Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_by_registry() {
        let file = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNz"},
            "registry.example.org:5000": {"username": "u", "password": "p"}
        }}"#;
        let basic = |u: &str, p: &str| Some(Auth::Basic { username: u.to_owned(), password: p.to_owned() });
        assert_eq!(credentials(file, "docker.io"), basic("user", "pass"));
        assert_eq!(credentials(file, "registry.example.org:5000"), basic("u", "p"));
        assert_eq!(credentials(file, "ghcr.io"), None);
        assert_eq!(credentials(b"nonsense", "docker.io"), None);
    }
}
