//! Who may do what. Pure but for the look at a pod's node, which the caller hands in.

use api::status::{Details, Reason, Status};

use crate::{
    authenticate::{Identity, MASTERS, UNAUTHENTICATED},
    pki::SERVER,
    route::{Route, Target, Verb},
};

/// What the decision hangs on besides the request itself.
pub enum Verdict {
    Allow,
    Deny,
    /// Allowed if the pod that the request names is bound to this node.
    IfPodOnNode(String),
}

/// Resources that every node reads whole.
const NODE_READS: &[&str] = &[
    "services",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "nodes",
    "pods",
    "configmaps",
    "secrets",
    "namespaces",
    "networkpolicies.networking.k8s.io",
    "ingresses.networking.k8s.io",
];

/// The namespace in which nodes say that they live.
const LEASES: &str = "kube-node-lease";

pub fn authorize(identity: &Identity, route: &Route) -> Verdict {
    match route {
        // Servers speak it among themselves; an administrator has no business in it, and could break what he does not see.
        Route::Raft | Route::RaftSnapshot if identity.user == SERVER && identity.in_group(MASTERS) => {
            return Verdict::Allow;
        }
        Route::Raft | Route::RaftSnapshot => return Verdict::Deny,
        _ if identity.in_group(MASTERS) => return Verdict::Allow,
        _ => {}
    }
    match route {
        Route::Alive | Route::Ready | Route::Version | Route::CaCerts | Route::Join | Route::Servers => Verdict::Allow,
        Route::Root
        | Route::CoreDiscovery
        | Route::GroupsDiscovery
        | Route::GroupDiscovery { .. }
        | Route::VersionDiscovery { .. }
        | Route::Swagger
        | Route::OpenApiIndex
        | Route::OpenApi { .. } => {
            if identity.in_group(UNAUTHENTICATED) {
                Verdict::Deny
            } else {
                Verdict::Allow
            }
        }
        Route::Snapshot
        | Route::Encryption
        | Route::RotateEncryption
        | Route::Status
        | Route::Server { .. }
        | Route::Raft
        | Route::RaftSnapshot => Verdict::Deny,
        Route::Resource(target) => match identity.node() {
            Some(node) => node_may(node, target),
            None => Verdict::Deny,
        },
    }
}

/// A node reads what it needs to run any pod, and writes what is about itself and its own pods.
fn node_may(node: &str, target: &Target) -> Verdict {
    use Verb::{Create, Delete, Get, List, Patch, Update, Watch};
    let resource = target.kind.resource();
    let allow = |yes: bool| if yes { Verdict::Allow } else { Verdict::Deny };
    match (resource.as_str(), target.subresource.as_str(), target.verb) {
        (resource, "", Get | List | Watch) if NODE_READS.contains(&resource) => Verdict::Allow,
        ("nodes", "", Create) => Verdict::Allow,
        ("nodes", "" | "status", Get | Update | Patch) => allow(target.name == node),
        ("pods", "status", Get | Update | Patch) => Verdict::IfPodOnNode(node.to_owned()),
        ("pods", "", Delete) => Verdict::IfPodOnNode(node.to_owned()),
        ("pods", "eviction", Create) => Verdict::IfPodOnNode(node.to_owned()),
        ("events" | "events.events.k8s.io", "", Create | Update | Patch) => Verdict::Allow,
        ("leases.coordination.k8s.io", "", Create) => allow(target.namespace == LEASES),
        ("leases.coordination.k8s.io", "", Get | Update | Patch | Delete) => {
            allow(target.namespace == LEASES && target.name == node)
        }
        ("serviceaccounts", "token", Create) => Verdict::Allow,
        ("serviceaccounts", "", Get) => Verdict::Allow,
        _ => Verdict::Deny,
    }
}

/// The refusal, in the form that clients show to people.
pub fn forbidden(identity: &Identity, route: &Route, path: &str) -> Status {
    let Route::Resource(target) = route else {
        let message = format!("forbidden: User \"{}\" cannot get path \"{path}\"", identity.user);
        return Status::new(Reason::Forbidden, message);
    };
    let Target { kind, verb, namespace, name, subresource } = target;
    let slash = |text: &str| if subresource.is_empty() { text.to_owned() } else { format!("{text}/{subresource}") };
    let subject = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let scope = match namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let message = format!(
        "{}{subject} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
        kind.resource(),
        identity.user,
        verb.as_str(),
        slash(kind.plural),
        kind.group,
    );
    let mut status = Status::new(Reason::Forbidden, message);
    *status.details =
        Details { name: name.clone(), group: kind.group.into(), kind: kind.plural.into(), ..Details::default() };
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authenticate::NODES, query::Query, route};

    fn decide(identity: &Identity, method: &str, uri: &str) -> &'static str {
        let uri: http::Uri = uri.parse().unwrap();
        let route = route::parse(&method.parse().unwrap(), uri.path(), &Query::parse(uri.query())).unwrap();
        match authorize(identity, &route) {
            Verdict::Allow => "yes",
            Verdict::Deny => "no",
            Verdict::IfPodOnNode(_) => "own pods",
        }
    }

    #[test]
    fn who_may_do_what() {
        let user =
            |user: &str, group: &str| Identity { user: user.into(), groups: vec![group.into()], uid: String::new() };
        let (master, anonymous) = (Identity::master("admin"), Identity::anonymous());
        let node = user("system:node:a", NODES);
        let account = user("system:serviceaccount:n:a", "system:authenticated");
        for (who, method, uri, want) in [
            (&master, "DELETE", "/api/v1/nodes/a", "yes"),
            (&anonymous, "GET", "/readyz", "yes"),
            (&anonymous, "POST", "/minik8s/v1/join", "yes"),
            (&anonymous, "GET", "/minik8s/v1/snapshot", "no"),
            (&master, "POST", "/minik8s/v1/encryption/rotate", "yes"),
            (&node, "POST", "/minik8s/v1/encryption/rotate", "no"),
            (&account, "GET", "/minik8s/v1/encryption", "no"),
            (&anonymous, "GET", "/apis", "no"),
            (&anonymous, "GET", "/api/v1/pods", "no"),
            (&account, "GET", "/apis", "yes"),
            (&account, "GET", "/api/v1/namespaces/n/pods", "no"),
            (&node, "GET", "/api/v1/pods?watch=1", "yes"),
            (&node, "GET", "/api/v1/secrets", "yes"),
            (&node, "POST", "/api/v1/namespaces/n/secrets", "no"),
            (&node, "PATCH", "/api/v1/nodes/a/status", "yes"),
            (&node, "PATCH", "/api/v1/nodes/b/status", "no"),
            (&node, "DELETE", "/api/v1/nodes/a", "no"),
            (&node, "PATCH", "/api/v1/namespaces/n/pods/p/status", "own pods"),
            (&node, "DELETE", "/api/v1/namespaces/n/pods/p", "own pods"),
            (&node, "PATCH", "/api/v1/namespaces/n/pods/p", "no"),
            (&node, "POST", "/api/v1/namespaces/n/pods", "no"),
            (&node, "GET", "/api/v1/namespaces/n/pods/p/exec", "no"),
            (&node, "POST", "/api/v1/namespaces/n/events", "yes"),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a", "yes"),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/b", "no"),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/default/leases/a", "no"),
        ] {
            assert_eq!(decide(who, method, uri), want, "{} {method} {uri}", who.user);
        }
    }

    #[test]
    fn refusals_read_as_clients_expect() {
        let uri: http::Uri = "/api/v1/namespaces/n/pods/p/exec".parse().unwrap();
        let route = route::parse(&http::Method::GET, uri.path(), &Query::default()).unwrap();
        let status = forbidden(&Identity::anonymous(), &route, uri.path());
        let want = "pods \"p\" is forbidden: User \"system:anonymous\" cannot get resource \"pods/exec\" in API group \"\" in the \
                    namespace \"n\"";
        assert_eq!((status.code, status.message.as_str()), (403, want));
    }
}
