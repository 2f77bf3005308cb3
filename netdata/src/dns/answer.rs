//! What a question about the cluster's names is answered. Pure.
//!
//! Specification: <https://github.com/kubernetes/dns/blob/master/docs/specification.md>

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use client::Key;
use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{CNAME, NS, PTR, SOA, SRV, TXT},
};
use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{cidr::Cidr, index::Index};

/// How long an answer may be kept: as long as kube-dns let it, and so as long as a moved endpoint may be missed.
pub const TTL: u32 = 5;

/// The version of the specification, which the specification wants told under `dns-version`.
const SCHEMA_VERSION: &str = "1.1.0";

/// Which names are the cluster's.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Such as `cluster.local`, in lower case, without a final dot.
    pub domain: String,
    /// Networks whose reverse names are ours.
    pub networks: Vec<Cidr>,
}

/// The outcome of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The name is, and these are its records of the type asked for. Empty: it has others.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// The name is an alias for one outside; the asker wants to know that one's records too.
    Alias { record: Box<Record>, target: Name },
    /// The name is not.
    NoSuchName,
    /// The name is not ours to answer.
    Elsewhere,
    /// The name is ours, and what there is is not known yet.
    NotYet,
}

impl Answer {
    fn records(answers: Vec<Record>) -> Answer {
        Answer::Records { answers, additionals: Vec::new() }
    }

    fn nothing_of_that_type() -> Answer {
        Answer::records(Vec::new())
    }
}

/// One endpoint under its service's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Host {
    /// The pod's hostname where it has one, else its address with dashes.
    name: String,
    ip: IpAddr,
}

impl Zone {
    /// The answer to a question about `name` (any case). Without an index only what is not ours is known.
    pub fn answer(&self, index: Option<&Index>, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_lowercase().to_ascii();
        let lower = lower.trim_end_matches('.');
        let Some(index) = index else {
            let nothing = Index::default();
            let elsewhere = self.answer(Some(&nothing), name, kind) == Answer::Elsewhere;
            return if elsewhere { Answer::Elsewhere } else { Answer::NotYet };
        };
        if let Some(reverse) = lower.strip_suffix(".in-addr.arpa") {
            return self.reverse(index, name, reverse, kind);
        }
        let Some(within) = lower.strip_suffix(&self.domain) else { return Answer::Elsewhere };
        if within.is_empty() {
            return self.apex(name, kind);
        }
        let Some(within) = within.strip_suffix('.') else { return Answer::Elsewhere };
        let labels: Vec<&str> = within.split('.').rev().collect();
        match *labels {
            ["dns-version"] => of_kind(kind, RecordType::TXT, || {
                vec![record(name, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])))]
            }),
            ["svc" | "pod"] => Answer::nothing_of_that_type(),
            ["svc" | "pod", namespace] if index.has_namespace(namespace) => Answer::nothing_of_that_type(),
            ["pod", namespace, pod] if index.has_namespace(namespace) => pod_answer(name, pod, kind),
            ["svc", namespace, ref rest @ ..] if !rest.is_empty() => {
                let key = Key::new(namespace, rest[0]);
                match index.service(&key) {
                    Some(service) => self.service(index, name, kind, &Asked { key, service, rest: &rest[1..] }),
                    None => Answer::NoSuchName,
                }
            }
            _ => Answer::NoSuchName,
        }
    }

    /// What goes with an answer that the name or the type is not: how long that may be kept.
    pub fn authority(&self) -> Option<Record> {
        let apex = Name::from_str(&format!("{}.", self.domain)).ok()?;
        let server = Name::from_str(&format!("ns.dns.{}.", self.domain)).ok()?;
        let contact = Name::from_str(&format!("hostmaster.{}.", self.domain)).ok()?;
        // The serial would let a secondary server see changes; there is none.
        let soa = SOA::new(server, contact, 1, 7200, 1800, 86_400, TTL);
        Some(record(&apex, RData::SOA(soa)))
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::records(self.authority().into_iter().collect()),
            RecordType::NS => {
                let server = Name::from_str(&format!("ns.dns.{}.", self.domain));
                Answer::records(server.into_iter().map(|server| record(name, RData::NS(NS(server)))).collect())
            }
            _ => Answer::nothing_of_that_type(),
        }
    }

    fn service(&self, index: &Index, name: &Name, kind: RecordType, asked: &Asked<'_>) -> Answer {
        let Some(spec) = &asked.service.spec else { return Answer::NoSuchName };
        if spec.type_.as_deref() == Some("ExternalName") {
            return match (asked.rest, spec.external_name.as_deref().map(absolute)) {
                ([], Some(Ok(target))) => alias(name, kind, target),
                _ => Answer::NoSuchName,
            };
        }
        let slices = index.slices(&asked.key);
        let headless = spec.cluster_ip.as_deref() == Some("None");
        match *asked.rest {
            [] if headless => match &*hosts(&slices, |_| true) {
                [] => Answer::NoSuchName,
                found if kind == RecordType::SRV => self.host_ports(name, asked, found, &slices, |_, _| true),
                found => Answer::records(addresses(name, found.iter().map(|host| host.ip), kind)),
            },
            [] if kind == RecordType::SRV => self.service_ports(name, asked, |_, _| true),
            [] => {
                let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok());
                let ips: BTreeSet<IpAddr> = ips.collect();
                Answer::records(addresses(name, ips, kind))
            }
            // The specification gives single endpoints names under headless services only.
            [host] if !host.starts_with('_') => {
                let found = if headless { hosts(&slices, |found| found.name == host) } else { Vec::new() };
                if found.is_empty() {
                    return Answer::NoSuchName;
                }
                Answer::records(addresses(name, found.iter().map(|host| host.ip), kind))
            }
            // What lies between a port's name and the service exists, though nothing is there.
            [protocol] if self.has_port(asked, &slices, |_, p| p == protocol) => Answer::nothing_of_that_type(),
            [protocol, port] => {
                let wanted = |name: &str, p: &str| name == port && p == protocol;
                if !self.has_port(asked, &slices, wanted) {
                    Answer::NoSuchName
                } else if kind != RecordType::SRV {
                    Answer::nothing_of_that_type()
                } else if headless {
                    self.host_ports(name, asked, &hosts(&slices, |_| true), &slices, wanted)
                } else {
                    self.service_ports(name, asked, wanted)
                }
            }
            _ => Answer::NoSuchName,
        }
    }

    /// Ports by their names with the underscores that DNS puts before them.
    fn has_port(&self, asked: &Asked<'_>, slices: &[&EndpointSlice], wanted: impl Fn(&str, &str) -> bool) -> bool {
        let ports = asked.service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let of_service = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref()));
        let ports = slices.iter().flat_map(|slice| slice.ports.iter().flatten());
        let of_slices = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref()));
        of_service.chain(of_slices).any(|(name, protocol)| {
            let (name, protocol) = underscored(name, protocol);
            name.len() > 1 && wanted(&name, &protocol)
        })
    }

    fn service_ports(&self, name: &Name, asked: &Asked<'_>, wanted: impl Fn(&str, &str) -> bool) -> Answer {
        let Ok(target) = self.service_name(&asked.key, "") else { return Answer::NoSuchName };
        let spec = asked.service.spec.as_ref();
        let ports = spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten().filter(|port| {
            let (name, protocol) = underscored(port.name.as_deref(), port.protocol.as_deref());
            wanted(&name, &protocol)
        });
        let answers: Vec<Record> =
            ports.filter_map(|port| srv(name, u16::try_from(port.port).ok()?, &target)).collect();
        let ips = spec.and_then(|spec| spec.cluster_ip.as_ref()).and_then(|ip| ip.parse().ok());
        let additionals = if answers.is_empty() { Vec::new() } else { with_addresses(&target, ips) };
        Answer::Records { answers, additionals }
    }

    fn host_ports(
        &self,
        name: &Name,
        asked: &Asked<'_>,
        hosts: &[Host],
        slices: &[&EndpointSlice],
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Answer {
        let ports: BTreeSet<u16> = (slices.iter().flat_map(|slice| slice.ports.iter().flatten()))
            .filter(|port| {
                let (name, protocol) = underscored(port.name.as_deref(), port.protocol.as_deref());
                wanted(&name, &protocol)
            })
            .filter_map(|port| u16::try_from(port.port?).ok())
            .collect();
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for host in hosts {
            let Ok(target) = self.service_name(&asked.key, &host.name) else { continue };
            answers.extend(ports.iter().filter_map(|port| srv(name, *port, &target)));
            additionals.extend(with_addresses(&target, [host.ip]));
        }
        Answer::Records { answers, additionals }
    }

    /// Reverse names: those of service addresses and of headless services' endpoints.
    fn reverse(&self, index: &Index, name: &Name, reversed: &str, kind: RecordType) -> Answer {
        let octets: Vec<&str> = reversed.split('.').rev().collect();
        let Ok(ip) = octets.join(".").parse::<Ipv4Addr>() else { return Answer::Elsewhere };
        let names: Vec<Name> = match index.by_cluster_ip(ip.into()) {
            Some(key) => self.service_name(key, "").into_iter().collect(),
            None => self.endpoint_names(index, ip),
        };
        if !names.is_empty() {
            let pointers = || names.into_iter().map(|target| record(name, RData::PTR(PTR(target)))).collect();
            return of_kind(kind, RecordType::PTR, pointers);
        }
        if self.networks.iter().any(|network| network.contains(ip)) { Answer::NoSuchName } else { Answer::Elsewhere }
    }

    fn endpoint_names(&self, index: &Index, ip: Ipv4Addr) -> Vec<Name> {
        let mut names = BTreeSet::new();
        for key in index.by_endpoint_ip(ip.into()) {
            let spec = index.service(key).and_then(|service| service.spec.as_ref());
            if spec.is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
                let hosts = hosts(&index.slices(key), |host| host.ip == IpAddr::V4(ip));
                names.extend(hosts.iter().filter_map(|host| self.service_name(key, &host.name).ok()));
            }
        }
        names.into_iter().collect()
    }

    /// The full name of a service, or of one endpoint under it.
    fn service_name(&self, key: &Key, host: &str) -> Result<Name, hickory_proto::ProtoError> {
        let dot = if host.is_empty() { "" } else { "." };
        absolute(&format!("{host}{dot}{}.{}.svc.{}", key.name, key.namespace, self.domain))
    }
}

struct Asked<'a> {
    key: Key,
    service: &'a Service,
    /// The labels before the service's, nearest first.
    rest: &'a [&'a str],
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn absolute(name: &str) -> Result<Name, hickory_proto::ProtoError> {
    Name::from_str(&format!("{}.", name.trim_end_matches('.')))
}

fn of_kind(kind: RecordType, has: RecordType, records: impl FnOnce() -> Vec<Record>) -> Answer {
    if kind == has || kind == RecordType::ANY { Answer::records(records()) } else { Answer::nothing_of_that_type() }
}

fn alias(name: &Name, kind: RecordType, target: Name) -> Answer {
    let record = record(name, RData::CNAME(CNAME(target.clone())));
    if kind == RecordType::CNAME {
        Answer::records(vec![record])
    } else {
        Answer::Alias { record: Box::new(record), target }
    }
}

fn addresses(name: &Name, ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Vec<Record> {
    let of_kind = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    with_addresses(name, ips.into_iter().filter(of_kind))
}

fn with_addresses(name: &Name, ips: impl IntoIterator<Item = IpAddr>) -> Vec<Record> {
    let data = ips.into_iter().map(|ip| match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(Ipv6Addr::into(ip)),
    });
    data.map(|data| record(name, data)).collect()
}

fn srv(name: &Name, port: u16, target: &Name) -> Option<Record> {
    // All alike: priority 0, and a weight that leaves the choice to chance.
    (port > 0).then(|| record(name, RData::SRV(SRV::new(0, 100, port, target.clone()))))
}

fn underscored(name: Option<&str>, protocol: Option<&str>) -> (String, String) {
    let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
    (format!("_{}", name.unwrap_or_default()), format!("_{protocol}"))
}

/// A pod's name is its address with dashes, whether or not there is such a pod.
fn pod_answer(name: &Name, pod: &str, kind: RecordType) -> Answer {
    match pod.replace('-', ".").parse::<Ipv4Addr>() {
        Ok(ip) => Answer::records(addresses(name, [IpAddr::V4(ip)], kind)),
        Err(_) => Answer::NoSuchName,
    }
}

/// The endpoints that a name may lead to: the ready ones, each once.
fn hosts(slices: &[&EndpointSlice], wanted: impl Fn(&Host) -> bool) -> Vec<Host> {
    let endpoints = slices.iter().filter(|slice| slice.address_type != "FQDN").flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    let mut found: BTreeMap<IpAddr, Host> = BTreeMap::new();
    for host in ready.flat_map(hosts_of) {
        if wanted(&host) {
            found.entry(host.ip).or_insert(host);
        }
    }
    found.into_values().collect()
}

fn hosts_of(endpoint: &Endpoint) -> impl Iterator<Item = Host> {
    endpoint.addresses.iter().filter_map(|address| {
        let ip: IpAddr = address.parse().ok()?;
        let name = endpoint.hostname.clone().filter(|name| !name.is_empty());
        Some(Host { name: name.unwrap_or_else(|| address.replace(['.', ':'], "-")), ip })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::index::Exists;

    fn zone() -> Zone {
        let networks = vec!["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
        Zone { domain: "cluster.local".into(), networks }
    }

    fn index() -> Index {
        let mut index = Index::default();
        for name in ["default", "empty"] {
            index.set_namespace(name, Exists::Yes);
        }
        let mut service = |name: &str, spec: Value| {
            let object = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
            index.set_service(&Key::new("default", name), Some(Arc::new(serde_json::from_value(object).unwrap())));
        };
        let web = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        service("web", json!({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00::1"], "ports": web}));
        service("own", json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}));
        service("unready", json!({"clusterIP": "None"}));
        service("out", json!({"type": "ExternalName", "externalName": "example.com"}));
        service("loop", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}));
        let mut slice = |service: &str, endpoints: Value| {
            let name = format!("{service}-x");
            let object = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                "endpoints": endpoints, "metadata": {"name": name, "namespace": "default",
                    "labels": {"kubernetes.io/service-name": service}}});
            index.set_slice(&Key::new("default", &name), Some(Arc::new(serde_json::from_value(object).unwrap())));
        };
        slice(
            "own",
            json!([
            {"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.1.3"], "conditions": {}},
            {"addresses": ["10.244.1.4"], "hostname": "db-2", "conditions": {"ready": false}}]),
        );
        slice("unready", json!([{"addresses": ["10.244.1.5"], "conditions": {"ready": false}}]));
        slice("web", json!([{"addresses": ["10.244.1.6"]}]));
        index
    }

    /// An answer in short: its records' data in order, `additional` behind `+`; or what else it is.
    fn ask(name: &str, kind: RecordType) -> String {
        let texts = |records: &[Record]| {
            let mut all: Vec<String> = records.iter().map(|record| record.data.to_string()).collect();
            all.sort();
            all.join(", ")
        };
        match zone().answer(Some(&index()), &Name::from_str(name).unwrap(), kind) {
            Answer::Records { answers, additionals } if additionals.is_empty() => texts(&answers),
            Answer::Records { answers, additionals } => format!("{} + {}", texts(&answers), texts(&additionals)),
            Answer::Alias { target, .. } => format!("-> {target}"),
            Answer::NoSuchName => "no such name".into(),
            Answer::Elsewhere => "elsewhere".into(),
            Answer::NotYet => "not yet".into(),
        }
    }

    #[test]
    fn questions_and_answers() {
        use RecordType::{A, AAAA, CNAME, MX, PTR, SOA, SRV, TXT};
        for (name, kind, expected) in [
            ("web.default.svc.cluster.local.", A, "10.96.1.1"),
            ("WEB.Default.svc.cluster.LOCAL.", A, "10.96.1.1"),
            ("web.default.svc.cluster.local.", AAAA, "fd00::1"),
            ("web.default.svc.cluster.local.", MX, ""),
            ("_http._tcp.web.default.svc.cluster.local.", SRV, "0 100 80 web.default.svc.cluster.local. + 10.96.1.1"),
            ("_http._tcp.web.default.svc.cluster.local.", A, ""),
            ("_http._udp.web.default.svc.cluster.local.", SRV, "no such name"),
            ("_tcp.web.default.svc.cluster.local.", A, ""),
            ("_sctp.web.default.svc.cluster.local.", A, "no such name"),
            ("10-244-1-6.web.default.svc.cluster.local.", A, "no such name"),
            ("web.empty.svc.cluster.local.", A, "no such name"),
            ("web.default.svc.cluster.local.default.svc.cluster.local.", A, "no such name"),
            ("own.default.svc.cluster.local.", A, "10.244.1.2, 10.244.1.3"),
            ("own.default.svc.cluster.local.", AAAA, ""),
            ("db-0.own.default.svc.cluster.local.", A, "10.244.1.2"),
            ("10-244-1-3.own.default.svc.cluster.local.", A, "10.244.1.3"),
            ("db-2.own.default.svc.cluster.local.", A, "no such name"),
            (
                "_http._tcp.own.default.svc.cluster.local.",
                SRV,
                "0 100 8080 10-244-1-3.own.default.svc.cluster.local., 0 100 8080 db-0.own.default.svc.cluster.local. + \
                 10.244.1.2, 10.244.1.3",
            ),
            ("unready.default.svc.cluster.local.", A, "no such name"),
            ("out.default.svc.cluster.local.", A, "-> example.com."),
            ("out.default.svc.cluster.local.", CNAME, "example.com."),
            ("a.out.default.svc.cluster.local.", A, "no such name"),
            ("10-1-2-3.default.pod.cluster.local.", A, "10.1.2.3"),
            ("10-1-2-3.default.pod.cluster.local.", AAAA, ""),
            ("10-1-2.default.pod.cluster.local.", A, "no such name"),
            ("10-1-2-3.nowhere.pod.cluster.local.", A, "no such name"),
            ("default.svc.cluster.local.", A, ""),
            ("empty.svc.cluster.local.", A, ""),
            ("nowhere.svc.cluster.local.", A, "no such name"),
            ("svc.cluster.local.", A, ""),
            ("cluster.local.", A, ""),
            ("other.cluster.local.", A, "no such name"),
            ("dns-version.cluster.local.", TXT, "1.1.0"),
            ("notcluster.local.", A, "elsewhere"),
            ("example.com.", A, "elsewhere"),
            ("1.1.96.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
            ("2.1.244.10.in-addr.arpa.", PTR, "db-0.own.default.svc.cluster.local."),
            ("6.1.244.10.in-addr.arpa.", PTR, "no such name"),
            ("1.1.96.10.in-addr.arpa.", A, ""),
            ("8.8.8.8.in-addr.arpa.", PTR, "elsewhere"),
            ("96.10.in-addr.arpa.", SOA, "elsewhere"),
        ] {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn before_the_lists_are_in_nothing_of_ours_is_denied() {
        let answer = |name: &str| zone().answer(None, &Name::from_str(name).unwrap(), RecordType::A);
        assert_eq!(answer("web.default.svc.cluster.local."), Answer::NotYet);
        assert_eq!(answer("example.com."), Answer::Elsewhere);
    }

    #[test]
    fn the_index_forgets() {
        let mut index = index();
        let ip: IpAddr = "10.244.1.2".parse().unwrap();
        assert_eq!(index.by_endpoint_ip(ip).count(), 1);
        assert_eq!(index.set_slice(&Key::new("default", "own-x"), None), [Key::new("default", "own")]);
        assert_eq!(index.by_endpoint_ip(ip).count(), 0);
        assert_eq!(index.set_slice(&Key::new("default", "own-x"), None), []);
        index.set_service(&Key::new("default", "web"), None);
        assert_eq!(index.by_cluster_ip("10.96.1.1".parse().unwrap()), None);
        assert!(index.slices(&Key::new("default", "own")).is_empty());
    }
}
