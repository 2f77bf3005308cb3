//! From a method and a path to what is meant. Pure.

use api::{
    registry::{self, Kind},
    status::Status,
};
use http::Method;

use crate::{
    paths,
    query::{Plus, Query, decode},
};

/// Everything that can be asked for.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// `/`: the list of paths.
    Root,
    /// `/healthz`, `/livez`.
    Alive,
    /// `/readyz`
    Ready,
    Version,
    /// The CA's certificate, for nodes that are about to join.
    CaCerts,
    Join,
    /// The whole cluster, for a backup.
    Snapshot,
    /// How encryption at rest is doing.
    Encryption,
    /// A new key for it.
    RotateEncryption,
    /// The cluster's servers, and how this one is.
    Status,
    /// A further server joins.
    Servers,
    /// A server is removed, or promoted, or says where it is.
    Server {
        which: String,
    },
    /// Messages of another server's store.
    Raft,
    /// A snapshot of another server's store.
    RaftSnapshot,
    /// `/api`: the versions of the core group, or its aggregated discovery.
    CoreDiscovery,
    /// `/apis`
    GroupsDiscovery,
    /// `/apis/apps`
    GroupDiscovery {
        group: String,
    },
    /// `/api/v1`, `/apis/apps/v1`
    VersionDiscovery {
        group: String,
        version: String,
    },
    /// `/openapi/v2`
    Swagger,
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/apis/apps/v1`
    OpenApi {
        group: String,
        version: String,
    },
    Resource(Target),
}

/// What a request does, in the words of authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// A request for objects of one kind.
#[derive(Clone)]
pub struct Target {
    pub kind: &'static Kind,
    pub verb: Verb,
    /// Empty for all namespaces and for cluster-scoped kinds.
    pub namespace: String,
    /// Empty for the collection.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, verb, namespace, name, subresource } = self;
        write!(f, "{} {} {namespace:?} {name:?} {subresource:?}", verb.as_str(), kind.resource())
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// Understands a request line, or says why there is nothing at that path.
pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Route, Status> {
    let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty()).map(|p| decode(p, Plus::IsPlus)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let route = match parts[..] {
        [] => Route::Root,
        ["healthz" | "livez", ..] => Route::Alive,
        ["readyz", ..] => Route::Ready,
        ["version"] => Route::Version,
        ["cacerts"] => Route::CaCerts,
        ["minik8s", ..] => own(path).ok_or_else(Status::no_such_resource)?,
        ["openapi", "v2"] => Route::Swagger,
        ["openapi", "v3"] => Route::OpenApiIndex,
        ["openapi", "v3", "api", version] => Route::OpenApi { group: String::new(), version: version.into() },
        ["openapi", "v3", "apis", group, version] => Route::OpenApi { group: group.into(), version: version.into() },
        ["api"] => Route::CoreDiscovery,
        ["apis"] => Route::GroupsDiscovery,
        ["apis", group] => Route::GroupDiscovery { group: group.into() },
        ["api", version] => Route::VersionDiscovery { group: String::new(), version: version.into() },
        ["apis", group, version] => Route::VersionDiscovery { group: group.into(), version: version.into() },
        ["api", version, ref rest @ ..] => Route::Resource(resource(method, "", version, rest, query)?),
        ["apis", group, version, ref rest @ ..] => Route::Resource(resource(method, group, version, rest, query)?),
        _ => return Err(Status::no_such_resource()),
    };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match route {
        Route::Resource(_) => Ok(route),
        Route::Join | Route::RotateEncryption | Route::Servers | Route::Raft | Route::RaftSnapshot
            if method == Method::POST =>
        {
            Ok(route)
        }
        Route::Server { .. } if matches!(*method, Method::DELETE | Method::POST | Method::PUT) => Ok(route),
        Route::Join
        | Route::RotateEncryption
        | Route::Servers
        | Route::Server { .. }
        | Route::Raft
        | Route::RaftSnapshot => Err(wrong_method()),
        _ if reads => Ok(route),
        _ => Err(wrong_method()),
    }
}

/// What is not Kubernetes'.
fn own(path: &str) -> Option<Route> {
    Some(match path {
        paths::JOIN => Route::Join,
        paths::SNAPSHOT => Route::Snapshot,
        paths::ENCRYPTION => Route::Encryption,
        paths::ROTATE => Route::RotateEncryption,
        paths::STATUS => Route::Status,
        paths::SERVERS => Route::Servers,
        paths::RAFT => Route::Raft,
        paths::RAFT_SNAPSHOT => Route::RaftSnapshot,
        _ => {
            let which = path.strip_prefix(paths::SERVERS)?.strip_prefix('/')?;
            Route::Server { which: decode(which, Plus::IsPlus) }
        }
    })
}

fn wrong_method() -> Status {
    Status::new(
        api::status::Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

/// Whether the path asks for a watch, by its old prefix or by the query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    Plain,
    Watch,
}

fn resource(method: &Method, group: &str, version: &str, rest: &[&str], query: &Query) -> Result<Target, Status> {
    let (prefix, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (Prefix::Watch, rest),
        rest => (Prefix::Plain, rest),
    };
    let kind_of = |plural: &str| registry::by_plural(group, version, plural).ok_or_else(Status::no_such_resource);
    let (kind, namespace, name, subresource) = match *rest {
        // A namespace's own subresources come before the resources inside of it.
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            (kind_of("namespaces")?, "", name, sub)
        }
        ["namespaces", namespace, plural, ref below @ ..] => {
            let kind = kind_of(plural)?;
            if !kind.namespaced() {
                return Err(Status::no_such_resource());
            }
            let (name, subresource) = below_kind(below)?;
            (kind, namespace, name, subresource)
        }
        [plural, ref below @ ..] => {
            let kind = kind_of(plural)?;
            let (name, subresource) = below_kind(below)?;
            if kind.namespaced() && !name.is_empty() {
                return Err(Status::no_such_resource());
            }
            (kind, "", name, subresource)
        }
        [] => return Err(Status::no_such_resource()),
    };
    let verb = verb(method, prefix, name, subresource, query)?;
    if kind.namespaced() && namespace.is_empty() && matches!(verb, Verb::Create | Verb::DeleteCollection) {
        return Err(wrong_method());
    }
    let known = subresource.is_empty()
        || subresource == "status" && kind.has_status
        || subresource == "scale" && kind.scale.is_some()
        || kind.subresources.iter().any(|s| s.name == subresource);
    if !known {
        return Err(Status::no_such_resource());
    }
    Ok(Target { kind, verb, namespace: namespace.into(), name: name.into(), subresource: subresource.into() })
}

fn below_kind<'a>(below: &[&'a str]) -> Result<(&'a str, &'a str), Status> {
    match *below {
        [] => Ok(("", "")),
        [name] => Ok((name, "")),
        [name, subresource] => Ok((name, subresource)),
        _ => Err(Status::no_such_resource()),
    }
}

fn verb(method: &Method, prefix: Prefix, name: &str, subresource: &str, query: &Query) -> Result<Verb, Status> {
    let watches = prefix == Prefix::Watch || (subresource.is_empty() && query.flag("watch"));
    match *method {
        Method::GET | Method::HEAD if watches => Ok(Verb::Watch),
        Method::GET | Method::HEAD if name.is_empty() => Ok(Verb::List),
        Method::GET | Method::HEAD => Ok(Verb::Get),
        Method::POST if name.is_empty() || !subresource.is_empty() => Ok(Verb::Create),
        Method::PUT if !name.is_empty() => Ok(Verb::Update),
        Method::PATCH if !name.is_empty() => Ok(Verb::Patch),
        Method::DELETE if name.is_empty() => Ok(Verb::DeleteCollection),
        Method::DELETE => Ok(Verb::Delete),
        _ => Err(wrong_method()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(method: &str, uri: &str) -> String {
        let uri: http::Uri = uri.parse().unwrap();
        match parse(&method.parse().unwrap(), uri.path(), &Query::parse(uri.query())) {
            Ok(Route::Resource(target)) => format!("{target:?}"),
            Ok(other) => format!("{other:?}"),
            Err(status) => status.code.to_string(),
        }
    }

    #[test]
    fn paths_mean() {
        for (method, uri, want) in [
            ("GET", "/", "Root"),
            ("GET", "/healthz", "Alive"),
            ("GET", "/livez/ping", "Alive"),
            ("GET", "/readyz", "Ready"),
            ("GET", "/version", "Version"),
            ("GET", "/cacerts", "CaCerts"),
            ("POST", "/minik8s/v1/join", "Join"),
            ("GET", "/minik8s/v1/join", "405"),
            ("GET", "/minik8s/v1/snapshot", "Snapshot"),
            ("POST", "/minik8s/v1/snapshot", "405"),
            ("GET", "/minik8s/v1/encryption", "Encryption"),
            ("POST", "/minik8s/v1/encryption", "405"),
            ("POST", "/minik8s/v1/encryption/rotate", "RotateEncryption"),
            ("GET", "/minik8s/v1/encryption/rotate", "405"),
            ("GET", "/minik8s/v1/status", "Status"),
            ("POST", "/minik8s/v1/servers", "Servers"),
            ("DELETE", "/minik8s/v1/servers/10.0.0.3", "Server { which: \"10.0.0.3\" }"),
            ("PUT", "/minik8s/v1/servers/https%3A%2F%2F[::1]:6443", "Server { which: \"https://[::1]:6443\" }"),
            ("GET", "/minik8s/v1/servers/a", "405"),
            ("POST", "/minik8s/v1/raft", "Raft"),
            ("POST", "/minik8s/v1/raft/snapshot", "RaftSnapshot"),
            ("GET", "/minik8s/v1/nonsense", "404"),
            ("DELETE", "/version", "405"),
            ("GET", "/api", "CoreDiscovery"),
            ("GET", "/apis", "GroupsDiscovery"),
            ("GET", "/apis/apps", "GroupDiscovery { group: \"apps\" }"),
            ("GET", "/api/v1", "VersionDiscovery { group: \"\", version: \"v1\" }"),
            ("GET", "/openapi/v2?timeout=32s", "Swagger"),
            ("POST", "/openapi/v2", "405"),
            ("GET", "/openapi/v3", "OpenApiIndex"),
            ("GET", "/openapi/v3/apis/apps/v1?hash=1", "OpenApi { group: \"apps\", version: \"v1\" }"),
            ("GET", "/api/v1/pods", "list pods \"\" \"\" \"\""),
            ("GET", "/api/v1/pods?watch=true", "watch pods \"\" \"\" \"\""),
            ("GET", "/api/v1/watch/pods", "watch pods \"\" \"\" \"\""),
            ("GET", "/api/v1/watch/namespaces/a/pods/b", "watch pods \"a\" \"b\" \"\""),
            ("GET", "/api/v1/namespaces/a/pods/b", "get pods \"a\" \"b\" \"\""),
            ("GET", "/api/v1/namespaces/a/pods/b/log?follow=1", "get pods \"a\" \"b\" \"log\""),
            ("POST", "/api/v1/namespaces/a/pods/b/binding", "create pods \"a\" \"b\" \"binding\""),
            ("POST", "/api/v1/namespaces/a/pods", "create pods \"a\" \"\" \"\""),
            ("POST", "/api/v1/namespaces/a/pods/b", "405"),
            ("POST", "/api/v1/pods", "405"),
            ("DELETE", "/api/v1/pods", "405"),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection pods \"a\" \"\" \"\""),
            ("PUT", "/api/v1/namespaces/a/pods", "405"),
            ("GET", "/api/v1/namespaces", "list namespaces \"\" \"\" \"\""),
            ("GET", "/api/v1/namespaces/a", "get namespaces \"\" \"a\" \"\""),
            ("PUT", "/api/v1/namespaces/a/finalize", "update namespaces \"\" \"a\" \"finalize\""),
            ("PATCH", "/api/v1/nodes/n/status", "patch nodes \"\" \"n\" \"status\""),
            ("GET", "/api/v1/namespaces/a/nodes", "404"),
            ("GET", "/api/v1/namespaces/a/pods/b/nonsense", "404"),
            ("GET", "/api/v1/namespaces/a/pods/b/log/c", "404"),
            ("GET", "/api/v2/pods", "404"),
            ("GET", "/apis/apps/v1/namespaces/a/deployments/d/scale", "get deployments.apps \"a\" \"d\" \"scale\""),
            ("GET", "/apis/apps/v1/namespaces/a/deployments/x%3Ay", "get deployments.apps \"a\" \"x:y\" \"\""),
            ("GET", "/nonsense", "404"),
        ] {
            assert_eq!(shown(method, uri), want, "{method} {uri}");
        }
    }
}
