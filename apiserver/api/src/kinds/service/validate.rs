//! What is wrong with a service.

use std::collections::HashSet;

use serde_json::Value;

use super::{EXTERNAL_NAME, HEADLESS, LOAD_BALANCER, NODE_PORT, TYPES, externally_accessible, has_cluster_ip};
use crate::{
    field::{Errors, Path, int, items, some_text, text},
    kinds::{endpoints, object_meta, pod},
    names,
};

/// The ports of nodes that services may take.
pub const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// One day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

pub fn service(errors: &mut Errors, object: &Value) {
    let path = Path::root("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let kind = text(spec, "type");
    errors.one_of(&path.child("type"), Some(kind), TYPES);
    addresses(errors, &path, spec);
    ports(errors, &path, spec);
    object_meta::label_map(errors, &path.child("selector"), spec, "selector");
    if kind == EXTERNAL_NAME {
        let at = path.child("externalName");
        match some_text(spec, "externalName") {
            None => errors.required(&at, ""),
            Some(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                errors.complaints(&at, name, names::dns1123_subdomain(name));
            }
        }
    }
    affinity(errors, &path, spec);
    policies(errors, &path, spec);
}

fn addresses(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let kind = text(spec, "type");
    let list = path.child("clusterIPs");
    let all = items(spec, "clusterIPs");
    let single = text(spec, "clusterIP");
    if kind == EXTERNAL_NAME {
        if !all.is_empty() || !single.is_empty() {
            errors.forbidden(&list, "an ExternalName service has none");
        }
        return;
    }
    if all.first().and_then(Value::as_str).is_some_and(|first| first != single) {
        errors.invalid(&list, &all.to_vec().into(), "must begin with `clusterIP`");
    }
    for (index, address) in all.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let at = list.index(index);
        match address {
            HEADLESS if matches!(kind, NODE_PORT | LOAD_BALANCER) => {
                errors.invalid_str(&at, address, &format!("a {kind} service needs an address"));
            }
            HEADLESS => {}
            _ => errors.complaints(&at, address, names::ip(address)),
        }
    }
    const ONE_FAMILY: usize = 1;
    if all.len() > ONE_FAMILY {
        errors.too_many(&list, all.len(), ONE_FAMILY);
    }
    let families = path.child("ipFamilies");
    for (index, family) in items(spec, "ipFamilies").iter().enumerate() {
        errors.one_of(&families.index(index), family.as_str(), &["IPv4", "IPv6"]);
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    errors.one_of(&path.child("ipFamilyPolicy"), some_text(spec, "ipFamilyPolicy"), &policies);
    let list = path.child("externalIPs");
    for (index, address) in items(spec, "externalIPs").iter().enumerate() {
        endpoints::endpoint_ip(errors, &list.index(index), address.as_str().unwrap_or_default());
    }
}

fn ports(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let list = path.child("ports");
    let ports = items(spec, "ports");
    let headless = text(spec, "clusterIP") == HEADLESS;
    if ports.is_empty() && !headless && text(spec, "type") != EXTERNAL_NAME {
        errors.required(&list, "");
    }
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = list.index(index);
        match text(port, "name") {
            "" if ports.len() > 1 => errors.required(&at.child("name"), ""),
            "" => {}
            name => {
                errors.complaints(&at.child("name"), name, names::dns1123_label(name));
                if !names.insert(name) {
                    errors.duplicate(&at.child("name"), &name.into());
                }
            }
        }
        let (number, protocol) = (int(port, "port").unwrap_or_default(), text(port, "protocol"));
        for complaint in names::port_number(number) {
            errors.invalid(&at.child("port"), &number.into(), &complaint);
        }
        pod::protocol_known(errors, &at.child("protocol"), protocol);
        if !numbers.insert((number, protocol)) {
            errors.duplicate(&at, &serde_json::json!({"port": number, "protocol": protocol}));
        }
        target_port(errors, &at.child("targetPort"), port);
        let node_port = int(port, "nodePort").unwrap_or_default();
        if node_port != 0 {
            node_port_fits(errors, &at.child("nodePort"), spec, node_port);
            if !node_ports.insert((node_port, protocol)) {
                errors.duplicate(&at.child("nodePort"), &node_port.into());
            }
        }
    }
}

fn target_port(errors: &mut Errors, at: &Path<'_>, port: &Value) {
    match port.get("targetPort") {
        Some(Value::String(name)) => errors.complaints(at, name, names::port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            for complaint in names::port_number(number) {
                errors.invalid(at, &number.into(), &complaint);
            }
        }
    }
}

fn node_port_fits(errors: &mut Errors, at: &Path<'_>, spec: &Value, port: i64) {
    let kind = text(spec, "type");
    if !matches!(kind, NODE_PORT | LOAD_BALANCER) {
        return errors.forbidden(at, &format!("a {kind} service has none"));
    }
    if !NODE_PORTS.contains(&port) {
        let detail = format!("must be in the range of node ports, {}-{}", NODE_PORTS.start(), NODE_PORTS.end());
        errors.invalid(at, &port.into(), &detail);
    }
}

fn affinity(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let affinity = text(spec, "sessionAffinity");
    errors.one_of(&path.child("sessionAffinity"), Some(affinity), &["ClientIP", "None"]);
    let at = path.child("sessionAffinityConfig");
    let seconds = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64);
    if let Some(seconds) = seconds
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let at = at.child("clientIP");
        let detail = format!("must be from 1 to {MAX_AFFINITY_SECONDS}");
        errors.invalid(&at.child("timeoutSeconds"), &seconds.into(), &detail);
    }
}

fn policies(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let at = path.child("externalTrafficPolicy");
    if let Some(policy) = some_text(spec, "externalTrafficPolicy") {
        if !externally_accessible(spec) {
            errors.invalid_str(&at, policy, "only services that are reached from outside have one");
        }
        errors.one_of(&at, Some(policy), &["Cluster", "Local"]);
    }
    let policy = some_text(spec, "internalTrafficPolicy");
    errors.one_of(&path.child("internalTrafficPolicy"), policy, &["Cluster", "Local"]);
    let distribution = some_text(spec, "trafficDistribution");
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    errors.one_of(&path.child("trafficDistribution"), distribution, &known);
    let balancer = text(spec, "type") == LOAD_BALANCER;
    for key in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        if !balancer && spec.get(key).is_some() {
            errors.forbidden(&path.child(key), "only a LoadBalancer service has it");
        }
    }
}

/// An address, once given, stays: clients hold on to it.
pub fn update(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::root("spec");
    let (new, old) = (new.get("spec").unwrap_or(&Value::Null), old.get("spec").unwrap_or(&Value::Null));
    if !has_cluster_ip(new) || !has_cluster_ip(old) {
        return;
    }
    let before = text(old, "clusterIP");
    if !before.is_empty() && before != text(new, "clusterIP") {
        let list = path.child("clusterIPs");
        let value = new.get("clusterIPs").unwrap_or(&Value::Null);
        errors.invalid(&list.index(0), value, "may not change once set");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::service::defaults;

    fn found(spec: Value) -> String {
        let mut object = json!({"spec": spec});
        defaults::service(&mut object);
        let mut errors = Errors::new();
        service(&mut errors, &object);
        errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn services_are_checked() {
        let table = [
            (json!({"ports": [{"port": 80, "targetPort": "http"}]}), ""),
            (json!({"clusterIP": "None"}), ""),
            (json!({"type": "ExternalName", "externalName": "a.b."}), ""),
            (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30090}]}), ""),
            (json!({"ports": [{"port": 53, "name": "a"}, {"port": 53, "name": "b", "protocol": "UDP"}]}), ""),
            (json!({}), "spec.ports: Required value"),
            (
                json!({"type": "Magic", "ports": [{"port": 80}]}),
                "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \
                 \"LoadBalancer\", \"NodePort\"",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
                "spec.ports[0].nodePort: Invalid value: 80: must be in the range of node ports, 30000-32767",
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30090}]}),
                "spec.ports[0].nodePort: Forbidden: a ClusterIP service has none",
            ),
            (json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}), "spec.ports[0].name: Required value"),
            (
                json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
                "spec.clusterIPs[0]: Invalid value: \"None\": a NodePort service needs an address",
            ),
            (
                json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
                "spec.externalTrafficPolicy: Invalid value: \"Local\": only services that are reached from outside have one",
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(found(spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn addresses_stay() {
        let service = |kind: &str, ip: &str| json!({"spec": {"type": kind, "clusterIP": ip, "clusterIPs": [ip]}});
        let table = [
            (service("ClusterIP", "10.96.0.1"), 0),
            (service("ClusterIP", "10.96.0.2"), 1),
            (service("ExternalName", ""), 0),
        ];
        for (new, count) in table {
            let mut errors = Errors::new();
            update(&mut errors, &new, &service("ClusterIP", "10.96.0.1"));
            assert_eq!(errors.0.len(), count, "{new}");
        }
    }
}
