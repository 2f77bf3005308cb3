//! What a pod finds in `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

/// Longest name that the kernel takes for a host.
const HOSTNAME_MAX: usize = 63;
/// What glibc reads of `nameserver` lines; more only draw warnings.
const NAMESERVERS_MAX: usize = 3;

/// The cluster's side of name resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDns {
    pub server: IpAddr,
    /// `cluster.local`
    pub domain: String,
}

/// The name that a pod's processes see as their host's.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let wanted = spec
        .and_then(|s| s.hostname_override.clone().or_else(|| s.hostname.clone()).filter(|h| !h.is_empty()))
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let mut short: String = wanted.chars().take(HOSTNAME_MAX).collect();
    while short.ends_with(['-', '.']) {
        short.pop();
    }
    short
}

/// `name.subdomain.namespace.svc.domain`, when the pod has a subdomain.
fn full_name(pod: &Pod, domain: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// `/etc/hosts` of a pod that has a network of its own.
pub fn hosts(pod: &Pod, ips: &[String], domain: &str) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let name = hostname(pod);
    for ip in ips {
        match full_name(pod, domain) {
            Some(full) => out.push_str(&format!("{ip}\t{full}\t{name}\n")),
            None => out.push_str(&format!("{ip}\t{name}\n")),
        }
    }
    out + &aliases(pod)
}

/// `/etc/hosts` of a pod on its node's network: the node's own file and the pod's aliases.
pub fn hosts_of_node(pod: &Pod, node_file: &str) -> String {
    let mut out = String::from("# Kubernetes-managed hosts file (host network).\n");
    out.push_str(node_file);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out + &aliases(pod)
}

fn aliases(pod: &Pod) -> String {
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    out
}

/// A parsed `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Resolv {
        let mut out = Resolv::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search") => out.searches = words.filter(|w| *w != ".").map(str::to_owned).collect(),
                Some("options") => out.options = words.map(str::to_owned).collect(),
                Some(_) | None => {}
            }
        }
        out
    }

    /// Adds what `dnsConfig` says; an option replaces one of the same name.
    fn merge(&mut self, config: &PodDNSConfig) {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut self.servers, &config.nameservers);
        add(&mut self.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            self.options.retain(|known| known.split(':').next() != Some(name));
            self.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }

    fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in self.servers.iter().take(NAMESERVERS_MAX) {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// `/etc/resolv.conf` by the pod's `dnsPolicy`. `node_file` is the node's own.
pub fn resolv_conf(pod: &Pod, dns: &ClusterDns, node_file: &str) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let of_node = Resolv::parse(node_file);
    let mut resolv = match policy {
        "None" => Resolv::default(),
        "Default" => of_node,
        // On the node's network the cluster's names are asked for only where the pod insists.
        "ClusterFirst" if host_network => of_node,
        _ => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let domain = &dns.domain;
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(of_node.searches.into_iter().filter(|s| !s.is_empty()));
            Resolv { servers: vec![dns.server.to_string()], searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        resolv.merge(config);
    }
    resolv.render()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NODE: &str = "domain example.org\nsearch lan.example.org\nnameserver 192.0.2.53\noptions edns0\n";

    fn pod(spec: serde_json::Value) -> Pod {
        let value = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
        serde_json::from_value(value).expect("a pod")
    }

    fn dns() -> ClusterDns {
        ClusterDns { server: "10.96.0.10".parse().expect("an address"), domain: "cluster.local".to_owned() }
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local lan.example.org\n\
                       nameserver 10.96.0.10\noptions ndots:5\n";
        let node = "search lan.example.org\nnameserver 192.0.2.53\noptions edns0\n";
        let table = [
            (json!({"containers": []}), cluster),
            (json!({"containers": [], "hostNetwork": true}), node),
            (json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
            (json!({"containers": [], "dnsPolicy": "Default"}), node),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["192.0.2.9"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                }}),
                "search a.b\nnameserver 192.0.2.9\noptions ndots:2 edns0\n",
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(resolv_conf(&pod(spec.clone()), &dns(), NODE), expected, "{spec}");
        }
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let plain = pod(json!({"containers": []}));
        assert!(hosts(&plain, &["10.244.0.2".to_owned()], "cluster.local").ends_with("\n10.244.0.2\tweb-0\n"));
        let full = pod(json!({"containers": [], "subdomain": "web", "hostAliases": [
            {"ip": "192.0.2.7", "hostnames": ["a", "b"]},
        ]}));
        let text = hosts(&full, &["10.244.0.2".to_owned()], "cluster.local");
        let end = "10.244.0.2\tweb-0.web.shop.svc.cluster.local\tweb-0\n\n\
                   # Entries added by HostAliases.\n192.0.2.7\ta\tb\n";
        assert!(text.ends_with(end), "{text}");
        assert!(hosts_of_node(&full, "127.0.0.1 localhost").contains("127.0.0.1 localhost\n\n# Entries"));
    }

    #[test]
    fn hostnames_are_cut_where_the_kernel_cuts() {
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(9)));
        assert_eq!(hostname(&long), "a".repeat(62));
    }
}
