//! Where things lie in the store.

use api::registry::Kind;
use bytes::Bytes;
use store::prefix_end;

/// Everything that is an object.
pub const REGISTRY: &str = "/registry/";

/// What is known of the keys of encrypted values. It is no object, and no client of the API sees it.
pub const ENCRYPTION: &str = "/minik8s/encryption/keys";

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: Bytes,
    pub end: Bytes,
}

impl Range {
    pub fn prefix(prefix: String) -> Self {
        let start = Bytes::from(prefix);
        Self { end: prefix_end(&start), start }
    }

    /// One key alone.
    pub fn key(key: Bytes) -> Self {
        let mut end = key.to_vec();
        end.push(0);
        Self { start: key, end: end.into() }
    }
}

pub fn object(kind: &'static Kind, namespace: &str, name: &str) -> Bytes {
    let resource = kind.stored().resource();
    match kind.namespaced() {
        true => format!("{REGISTRY}{resource}/{namespace}/{name}").into(),
        false => format!("{REGISTRY}{resource}/{name}").into(),
    }
}

/// All objects of a kind, or those of one namespace.
pub fn collection(kind: &'static Kind, namespace: &str) -> Range {
    let resource = kind.stored().resource();
    match namespace {
        "" => Range::prefix(format!("{REGISTRY}{resource}/")),
        namespace => Range::prefix(format!("{REGISTRY}{resource}/{namespace}/")),
    }
}

/// Namespace and name of the object behind a key of this kind.
pub fn names<'a>(kind: &Kind, key: &'a [u8]) -> (&'a str, &'a str) {
    let key = std::str::from_utf8(key).unwrap_or_default();
    let rest = key.strip_prefix(REGISTRY).and_then(|rest| rest.split_once('/')).map_or("", |(_, rest)| rest);
    if kind.namespaced() { rest.split_once('/').unwrap_or_default() } else { ("", rest) }
}

/// The resource of the objects behind a key, such as `deployments.apps`.
pub fn resource(key: &[u8]) -> &str {
    let key = std::str::from_utf8(key).unwrap_or_default();
    key.strip_prefix(REGISTRY).and_then(|rest| rest.split_once('/')).map_or("", |(resource, _)| resource)
}

/// Says that a service has this address; the value is `namespace/name`.
pub fn cluster_ip(ip: std::net::IpAddr) -> Bytes {
    format!("/allocations/clusterip/{ip}").into()
}

pub fn node_port(port: u16) -> Bytes {
    format!("/allocations/nodeport/{port}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_back() {
        let kind = |plural| api::registry::by_plural("", "v1", plural).unwrap();
        let key = object(kind("pods"), "a", "b");
        assert_eq!(key, "/registry/pods/a/b");
        assert_eq!(names(kind("pods"), &key), ("a", "b"));
        let key = object(kind("nodes"), "", "n");
        assert_eq!(key, "/registry/nodes/n");
        assert_eq!(names(kind("nodes"), &key), ("", "n"));
        assert_eq!((resource(&key), resource(b"/registry/deployments.apps/n/d")), ("nodes", "deployments.apps"));
        assert_eq!(resource(b"/allocations/nodeport/1"), "");
        let range = collection(kind("pods"), "a");
        assert_eq!((&range.start[..], &range.end[..]), (&b"/registry/pods/a/"[..], &b"/registry/pods/a0"[..]));
        assert_eq!(Range::key(key).end, "/registry/nodes/n\0");
    }
}
