//! What every kind has, and small readers of metadata.

use std::fmt;

use k8s_openapi::{
    ClusterResourceScope, Metadata, NamespaceResourceScope, Resource,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::{Serialize, de::DeserializeOwned};

/// A kind that can be read and written through the client.
// The bounds on associated types stand on the implementation alone: on the trait itself they keep the compiler from
// seeing that a future over a generic kind is `Send`.
pub trait Object: Resource + Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    const NAMESPACED: bool;

    fn meta(&self) -> &ObjectMeta;

    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

impl<K> Object for K
where
    K: Resource<Scope: Scope> + Metadata<Ty = ObjectMeta>,
    K: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    const NAMESPACED: bool = <K::Scope as Scope>::NAMESPACED;

    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }
}

/// Whether a kind's objects live in namespaces.
pub trait Scope {
    const NAMESPACED: bool;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

/// Names one object of a kind. Ordered by namespace first, so that one namespace is one range.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Object>(object: &K) -> Key {
        Key::new(namespace(object), name(object))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

pub fn name<K: Object>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

pub fn namespace<K: Object>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

pub fn uid<K: Object>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

/// The object's resource version as the number that it is; zero when it was never stored.
pub fn revision<K: Object>(object: &K) -> u64 {
    parse_revision(object.meta().resource_version.as_deref())
}

pub(crate) fn parse_revision(text: Option<&str>) -> u64 {
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

pub fn is_deleting<K: Object>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

pub fn label<'a, K: Object>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(name).map(String::as_str)
}

pub fn annotation<'a, K: Object>(object: &'a K, name: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(name).map(String::as_str)
}

/// The owner that manages the object, of which there is at most one.
pub fn controller<K: Object>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.as_ref()?.iter().find(|o| o.controller == Some(true))
}

/// A reference that makes `owner` the managing owner of another object.
pub fn controller_reference<K: Object>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_by_namespace_first() {
        let mut keys = [Key::new("b", "a"), Key::new("a", "z"), Key::new("", "node"), Key::new("a", "b")];
        keys.sort();
        let shown: Vec<String> = keys.iter().map(Key::to_string).collect();
        assert_eq!(shown, ["node", "a/b", "a/z", "b/a"]);
    }
}
