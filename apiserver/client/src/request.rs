//! Parameters of requests, and where an object's URL lies.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    object::{self, Object},
};

/// What a list or a watch is narrowed to. Selectors are in kubectl's syntax; empty means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListParams {
    pub label_selector: String,
    pub field_selector: String,
}

impl ListParams {
    pub fn labels(selector: impl Into<String>) -> ListParams {
        ListParams { label_selector: selector.into(), ..ListParams::default() }
    }

    pub fn fields(selector: impl Into<String>) -> ListParams {
        ListParams { field_selector: selector.into(), ..ListParams::default() }
    }

    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        if !self.label_selector.is_empty() {
            query.push(("labelSelector", self.label_selector.clone()));
        }
        if !self.field_selector.is_empty() {
            query.push(("fieldSelector", self.field_selector.clone()));
        }
        query
    }
}

/// All objects of a kind at one revision.
#[derive(Clone, Debug)]
pub struct List<K> {
    pub items: Vec<K>,
    pub revision: u64,
}

/// A change to send in place of a whole object.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    Merge(Value),
    Strategic(Value),
    Json(Value),
}

impl Patch {
    pub(crate) fn content_type(&self) -> &'static str {
        match self {
            Patch::Merge(_) => "application/merge-patch+json",
            Patch::Strategic(_) => "application/strategic-merge-patch+json",
            Patch::Json(_) => "application/json-patch+json",
        }
    }

    pub(crate) fn body(&self) -> &Value {
        match self {
            Patch::Merge(body) | Patch::Strategic(body) | Patch::Json(body) => body,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<Propagation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
}

impl DeleteOptions {
    /// Deletes only the object with this uid: a namesake that came later is left alone.
    pub fn uid(uid: impl Into<String>) -> DeleteOptions {
        let preconditions = Preconditions { uid: Some(uid.into()), resource_version: None };
        DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() }
    }

    pub fn grace(mut self, seconds: i64) -> DeleteOptions {
        self.grace_period_seconds = Some(seconds);
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Where a kind's objects, or one of them, are found: `/apis/apps/v1/namespaces/default/deployments/web`.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub group: &'a str,
    pub version: &'a str,
    /// Empty for all namespaces, and for cluster-scoped kinds.
    pub namespace: &'a str,
    pub plural: &'a str,
    /// Empty for the collection.
    pub name: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            "" => write!(f, "/api/{}", self.version)?,
            group => write!(f, "/apis/{group}/{}", self.version)?,
        }
        if !self.namespace.is_empty() {
            write!(f, "/namespaces/{}", escape(self.namespace))?;
        }
        write!(f, "/{}", self.plural)?;
        if !self.name.is_empty() {
            write!(f, "/{}", escape(self.name))?;
        }
        Ok(())
    }
}

/// The objects of a typed kind; an empty namespace means all of them.
pub(crate) fn collection<K: Object>(namespace: &str) -> String {
    item::<K>(namespace, "")
}

pub(crate) fn item<K: Object>(namespace: &str, name: &str) -> String {
    let namespace = if K::NAMESPACED { namespace } else { "" };
    Place { group: K::GROUP, version: K::VERSION, namespace, plural: K::URL_PATH_SEGMENT, name }.to_string()
}

#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
struct WireList<K> {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<K>,
}

/// A whole kind, of all namespaces.
pub(crate) fn list_url<K: Object>(params: &ListParams) -> String {
    with_query(collection::<K>(""), &params.query())
}

pub(crate) fn decode_list<K: Object>(answer: &[u8]) -> Result<List<K>> {
    let list: WireList<K> = serde_json::from_slice(answer)
        .map_err(|source| Error::Decode { operation: format!("list {}", K::URL_PATH_SEGMENT), source })?;
    let revision = object::parse_revision(list.metadata.resource_version.as_deref());
    Ok(List { items: list.items, revision })
}

pub(crate) fn with_query(path: String, query: &[(&'static str, String)]) -> String {
    let mut url = path;
    for (i, (name, value)) in query.iter().enumerate() {
        url.push(if i == 0 { '?' } else { '&' });
        url.push_str(name);
        url.push('=');
        url.push_str(&escape(value));
    }
    url
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{Node, Pod},
    };

    use super::*;

    #[test]
    fn paths() {
        assert_eq!(item::<Pod>("default", "web-0"), "/api/v1/namespaces/default/pods/web-0");
        assert_eq!(collection::<Pod>(""), "/api/v1/pods");
        assert_eq!(item::<Node>("ignored", "a"), "/api/v1/nodes/a");
        assert_eq!(collection::<Deployment>("x"), "/apis/apps/v1/namespaces/x/deployments");
        assert_eq!(item::<Pod>("default", "../x"), "/api/v1/namespaces/default/pods/..%2Fx");
        assert_eq!(item::<Node>("", "system:a/b"), "/api/v1/nodes/system%3Aa%2Fb");
    }

    #[test]
    fn queries_are_escaped() {
        let query =
            ListParams { label_selector: "a in (b,c)".into(), field_selector: "spec.nodeName=n".into() }.query();
        let url = with_query("/api/v1/pods".into(), &query);
        assert_eq!(url, "/api/v1/pods?labelSelector=a%20in%20%28b%2Cc%29&fieldSelector=spec.nodeName%3Dn");
    }
}
