//! From one Service and its EndpointSlices to what this node does for it. Pure.
//!
//! Which endpoints serve follows Kubernetes' proxy terms: the ready ones; where there is none, those that still serve
//! while they terminate. `internalTrafficPolicy: Local` and `externalTrafficPolicy: Local` take only endpoints of this
//! node; a caller inside the cluster is never held to the external policy.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{
    cidr::Cidr,
    frontend::{Face, Frontend, Protocol},
    ruleset::{Load, Rules, Special},
};

/// The label by which a slice names its service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A service with this label is served by another proxy.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

/// What of this node matters to services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub node_name: String,
    /// The address at which this node answers cluster DNS itself: nothing may lead away from it.
    pub cluster_dns: Ipv4Addr,
}

/// Endpoints of one service port, in order, each once.
#[derive(Debug, Default)]
struct Chosen {
    anywhere: Vec<SocketAddrV4>,
    here: Vec<SocketAddrV4>,
}

/// What this node does for a service.
pub fn service(local: &Local, service: &Service, slices: &[&EndpointSlice]) -> Rules {
    let mut rules = Rules::default();
    let Some(spec) = service.spec.as_ref().filter(|spec| is_proxied(service, spec)) else { return rules };
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        let chosen = choose(local, port, slices);
        rules.local.extend(chosen.here.iter().map(|endpoint| *endpoint.ip()));
        for (frontend, load) in frontends(service, spec, port, protocol, &chosen) {
            if frontend.ip != local.cluster_dns {
                rules.frontends.insert(frontend, load);
            }
        }
    }
    rules
}

fn is_proxied(service: &Service, spec: &ServiceSpec) -> bool {
    let labels = service.metadata.labels.as_ref();
    spec.type_.as_deref() != Some("ExternalName")
        && spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None")
        && !labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY_LABEL))
}

fn frontends(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    protocol: Protocol,
    chosen: &Chosen,
) -> Vec<(Frontend, Load)> {
    let mut all = Vec::new();
    let Some(number) = port_number(port.port) else { return all };
    let affinity = affinity(spec);
    let load = |endpoints: &[SocketAddrV4], sources: &[Cidr]| load(endpoints, affinity, sources);
    let at = |face, ip, port| Frontend { face, ip, protocol, port };

    let internal = match spec.internal_traffic_policy.as_deref() {
        Some("Local") => local_only(chosen, load(&chosen.here, &[])),
        _ => load(&chosen.anywhere, &[]),
    };
    for ip in cluster_ips(spec) {
        all.push((at(Face::Vip, ip, number), internal.clone()));
    }

    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let sources = source_ranges(spec);
    let outside_ips = external_ips(spec).into_iter().map(|ip| (ip, &[][..]));
    let ingress_ips = ingress_ips(service).into_iter().map(|ip| (ip, &sources[..]));
    for (ip, sources) in outside_ips.chain(ingress_ips) {
        all.push((at(Face::Vip, ip, number), load(&chosen.anywhere, sources)));
        if external_local {
            all.push((at(Face::VipOutside, ip, number), local_only(chosen, load(&chosen.here, sources))));
        }
    }
    if let Some(node_port) = port.node_port.and_then(port_number) {
        all.push((at(Face::Node, Ipv4Addr::UNSPECIFIED, node_port), load(&chosen.anywhere, &[])));
        if external_local {
            let load = local_only(chosen, load(&chosen.here, &[]));
            all.push((at(Face::NodeOutside, Ipv4Addr::UNSPECIFIED, node_port), load));
        }
    }
    all
}

fn load(endpoints: &[SocketAddrV4], affinity_seconds: Option<u32>, sources: &[Cidr]) -> Load {
    let endpoints = endpoints.to_vec();
    if endpoints.is_empty() {
        Load::Reject
    } else if affinity_seconds.is_none() && sources.is_empty() {
        Load::Spread(endpoints)
    } else {
        Load::Special(Special { endpoints, affinity_seconds, sources: sources.to_vec() })
    }
}

/// Under a Local policy a node without endpoints stays silent while others have some, so that a load balancer in front
/// finds one of those.
fn local_only(chosen: &Chosen, load: Load) -> Load {
    if chosen.here.is_empty() && !chosen.anywhere.is_empty() { Load::Drop } else { load }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
    Some(seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS))
}

fn cluster_ips(spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

fn external_ips(spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
}

/// A load balancer in `Proxy` mode wants to see the traffic itself.
fn ingress_ips(service: &Service) -> BTreeSet<Ipv4Addr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let ours = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    ours.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

fn source_ranges(spec: &ServiceSpec) -> Vec<Cidr> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let parsed: BTreeSet<Cidr> = ranges.filter_map(|range| range.trim().parse().ok()).collect();
    // nft refuses overlapping intervals in one set, so a range within another is left out.
    let within = |inner: &Cidr, outer: &Cidr| outer.prefix() < inner.prefix() && outer.contains(inner.base());
    parsed.iter().filter(|inner| !parsed.iter().any(|outer| within(inner, outer))).copied().collect()
}

/// The endpoints that serve a port, from all slices.
fn choose(local: &Local, port: &ServicePort, slices: &[&EndpointSlice]) -> Chosen {
    let mut ready = BTreeSet::new();
    let mut leaving = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let Some(number) = slice_port(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            let wanted = match Stage::of(endpoint) {
                Stage::Ready => &mut ready,
                Stage::Leaving => &mut leaving,
                Stage::Not => continue,
            };
            let here = endpoint.node_name.as_deref() == Some(&*local.node_name);
            // All addresses of one endpoint are the same place; the first is the one to use.
            if let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse().ok()) {
                wanted.insert((SocketAddrV4::new(ip, number), here));
            }
        }
    }
    Chosen { anywhere: pick(&ready, &leaving, |_| true), here: pick(&ready, &leaving, |here| here) }
}

fn pick(
    ready: &BTreeSet<(SocketAddrV4, bool)>,
    leaving: &BTreeSet<(SocketAddrV4, bool)>,
    wanted: impl Fn(bool) -> bool,
) -> Vec<SocketAddrV4> {
    let of = |set: &BTreeSet<(SocketAddrV4, bool)>| -> BTreeSet<SocketAddrV4> {
        set.iter().filter(|(_, here)| wanted(*here)).map(|(endpoint, _)| *endpoint).collect()
    };
    let ready = of(ready);
    (if ready.is_empty() { of(leaving) } else { ready }).into_iter().collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    /// Terminating, and still able to serve.
    Leaving,
    Not,
}

impl Stage {
    fn of(endpoint: &Endpoint) -> Stage {
        let conditions = endpoint.conditions.as_ref();
        // An absent condition counts as ready; `serving` is then what `ready` is.
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        match (ready, serving && terminating) {
            (true, _) => Stage::Ready,
            (false, true) => Stage::Leaving,
            (false, false) => Stage::Not,
        }
    }
}

/// The number that a service port has in a slice: they are matched by name, where an absent name is the empty one.
fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    let mut same = ports.filter(|p| {
        p.name.as_deref().unwrap_or_default() == wanted
            && Protocol::parse(p.protocol.as_deref()) == Protocol::parse(port.protocol.as_deref())
    });
    same.next()?.port.and_then(port_number)
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SERVICE: &str = "10.96.1.1";

    fn here() -> Local {
        Local { node_name: "a".into(), cluster_dns: Ipv4Addr::new(10, 96, 0, 10) }
    }

    fn rules(spec: Value, endpoints: Value) -> Rules {
        let mut whole = json!({"clusterIP": SERVICE, "ports": [{"port": 80}]});
        for (field, value) in spec.as_object().unwrap() {
            whole[field] = value.clone();
        }
        let object: Service =
            serde_json::from_value(json!({"spec": whole, "status": whole["status"], "metadata": whole["metadata"]}))
                .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"port": 8080}, {"name": "b", "port": 9090, "protocol": "UDP"}]}))
        .unwrap();
        service(&here(), &object, &[&slice])
    }

    fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
    }

    fn two() -> Value {
        json!([endpoint("10.244.1.2", "a", json!({})), endpoint("10.244.2.2", "b", json!({}))])
    }

    fn vip(ip: &str, port: u16) -> Frontend {
        Frontend { face: Face::Vip, ip: ip.parse().unwrap(), protocol: Protocol::Tcp, port }
    }

    fn node(face: Face, port: u16) -> Frontend {
        Frontend { face, ip: Ipv4Addr::UNSPECIFIED, protocol: Protocol::Tcp, port }
    }

    fn spread(endpoints: &[&str]) -> Load {
        Load::Spread(endpoints.iter().map(|e| e.parse().unwrap()).collect())
    }

    #[test]
    fn which_endpoints_serve() {
        let (ready, not) = (json!({"ready": true}), json!({"ready": false}));
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let broken = json!({"ready": false, "serving": false, "terminating": true});
        let starting = json!({"ready": false, "serving": true, "terminating": false});
        let one = "10.244.1.2:8080";
        for (name, endpoints, expected) in [
            ("none", json!([]), Load::Reject),
            ("no conditions are ready", json!([endpoint("10.244.1.2", "a", json!({}))]), spread(&[one])),
            ("not ready", json!([endpoint("10.244.1.2", "a", not)]), Load::Reject),
            (
                "serving while terminating, as the last",
                json!([endpoint("10.244.1.2", "a", leaving.clone())]),
                spread(&[one]),
            ),
            (
                "not when there is a ready one",
                json!([endpoint("10.244.1.9", "a", leaving), endpoint("10.244.1.2", "a", ready.clone())]),
                spread(&[one]),
            ),
            ("terminating and not serving", json!([endpoint("10.244.1.2", "a", broken)]), Load::Reject),
            ("serving and not ready", json!([endpoint("10.244.1.2", "a", starting)]), Load::Reject),
            (
                "one address twice",
                json!([endpoint("10.244.1.2", "a", ready.clone()), endpoint("10.244.1.2", "a", ready)]),
                spread(&[one]),
            ),
        ] {
            let rules = rules(json!({}), endpoints);
            assert_eq!(rules.frontends.get(&vip(SERVICE, 80)), Some(&expected), "{name}");
        }
    }

    #[test]
    fn policies_choose_by_node_and_caller() {
        let all = spread(&["10.244.1.2:8080", "10.244.2.2:8080"]);
        let mine = spread(&["10.244.1.2:8080"]);
        let far = json!([endpoint("10.244.2.2", "b", json!({}))]);
        let node_port = json!([{"port": 80, "nodePort": 30080}]);
        let external = json!({"externalTrafficPolicy": "Local", "ports": node_port, "externalIPs": ["192.0.2.1"]});

        let local = rules(external.clone(), two()).frontends;
        assert_eq!(local[&vip(SERVICE, 80)], all);
        assert_eq!(local[&vip("192.0.2.1", 80)], all, "a caller within the cluster is not held to it");
        assert_eq!(local[&Frontend { face: Face::VipOutside, ..vip("192.0.2.1", 80) }], mine);
        assert_eq!(local[&node(Face::Node, 30080)], all);
        assert_eq!(local[&node(Face::NodeOutside, 30080)], mine);
        assert_eq!(local.len(), 5);

        let elsewhere = rules(external.clone(), far.clone()).frontends;
        assert_eq!(elsewhere[&node(Face::NodeOutside, 30080)], Load::Drop);
        assert_eq!(elsewhere[&node(Face::Node, 30080)], spread(&["10.244.2.2:8080"]));
        let nowhere = rules(external, json!([])).frontends;
        assert_eq!(nowhere[&node(Face::NodeOutside, 30080)], Load::Reject);

        let internal = json!({"internalTrafficPolicy": "Local", "ports": node_port});
        let rules_of = |endpoints| rules(internal.clone(), endpoints).frontends;
        assert_eq!(rules_of(two())[&vip(SERVICE, 80)], mine);
        assert_eq!(rules_of(two())[&node(Face::Node, 30080)], all);
        assert_eq!(rules_of(far)[&vip(SERVICE, 80)], Load::Drop);
    }

    #[test]
    fn what_is_not_routed_here() {
        for spec in [
            json!({"clusterIP": "None"}),
            json!({"clusterIP": ""}),
            json!({"type": "ExternalName"}),
            json!({"clusterIP": "10.96.0.10"}),
            json!({"clusterIP": "fd00::1"}),
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}}),
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            json!({"ports": []}),
        ] {
            assert_eq!(rules(spec.clone(), two()).frontends.len(), 0, "{spec}");
        }
    }

    #[test]
    fn addresses_ports_affinity_and_ranges() {
        let spec = json!({
            "clusterIPs": [SERVICE, "fd00::1"],
            "ports": [{"port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}, {"name": "missing", "port": 81}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "loadBalancerSourceRanges": ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", " 192.0.2.0/24 "],
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "x"}]}},
        });
        let got = rules(spec, two());
        let special = |port: u16, sources: &[&str]| {
            let endpoints = ["10.244.1.2", "10.244.2.2"].map(|ip| SocketAddrV4::new(ip.parse().unwrap(), port));
            let sources = sources.iter().map(|s| s.parse().unwrap()).collect();
            Load::Special(Special { endpoints: endpoints.to_vec(), affinity_seconds: Some(60), sources })
        };
        let ranges = ["10.0.0.0/8", "192.0.2.0/24"];
        let udp = |frontend: Frontend| Frontend { protocol: Protocol::Udp, ..frontend };
        let expected = [
            (vip(SERVICE, 80), special(8080, &[])),
            (udp(vip(SERVICE, 53)), special(9090, &[])),
            (vip(SERVICE, 81), Load::Reject),
            (vip("192.0.2.7", 80), special(8080, &ranges)),
            (udp(vip("192.0.2.7", 53)), special(9090, &ranges)),
            (vip("192.0.2.7", 81), Load::Reject),
        ];
        assert_eq!(got.frontends, expected.into());
        assert_eq!(got.local, BTreeSet::from([Ipv4Addr::new(10, 244, 1, 2)]));
        let default = rules(json!({"sessionAffinity": "ClientIP"}), two());
        let Load::Special(special) = &default.frontends[&vip(SERVICE, 80)] else { panic!("{default:?}") };
        assert_eq!(special.affinity_seconds, Some(AFFINITY_SECONDS));
    }
}
