//! What a service gets where the client said nothing, and what an update carries over.

use serde_json::{Map, Value, json};

use super::{CLUSTER_IP, EXTERNAL_NAME, HEADLESS, LOAD_BALANCER, NODE_PORT, externally_accessible, has_cluster_ip};
use crate::field::{copy_field, int, items, items_mut, object_mut, set_default, set_default_text, some_text, text};

/// How long one client stays with one pod.
const AFFINITY_SECONDS: i64 = 10_800;

pub fn service(object: &mut Value) {
    let spec = object_mut(object, "spec");
    set_default_text(spec, "type", CLUSTER_IP);
    set_default_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "ClientIP" {
        let client = object_mut(object_mut(spec, "sessionAffinityConfig"), "clientIP");
        set_default(client, "timeoutSeconds", AFFINITY_SECONDS);
    } else {
        unset(spec, "sessionAffinityConfig");
    }
    for port in items_mut(spec, "ports") {
        set_default_text(port, "protocol", "TCP");
        let unset = port.get("targetPort").is_none_or(|target| target == 0 || target == "");
        if unset {
            let number = int(port, "port").unwrap_or_default();
            port["targetPort"] = number.into();
        }
    }
    if externally_accessible(spec) {
        set_default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == LOAD_BALANCER {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if text(spec, "type") != EXTERNAL_NAME {
        set_default_text(spec, "internalTrafficPolicy", "Cluster");
        families(spec);
    }
    addresses(spec);
}

/// The network has one family of addresses.
fn families(spec: &mut Value) {
    if items(spec, "ipFamilies").is_empty() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    set_default_text(spec, "ipFamilyPolicy", "SingleStack");
}

/// `clusterIP` is the first of `clusterIPs`, whichever of the two the client wrote.
fn addresses(spec: &mut Value) {
    let single = some_text(spec, "clusterIP").map(str::to_owned);
    let first = items(spec, "clusterIPs").first().and_then(Value::as_str).map(str::to_owned);
    match (single, first) {
        (Some(single), None) => spec["clusterIPs"] = json!([single]),
        (None, Some(first)) => spec["clusterIP"] = first.into(),
        _ => {}
    }
}

/// An update that leaves out what was allocated keeps it; one that changes the type gives back what the new type
/// does not have.
pub fn carry_over(new: &mut Value, old: &Value) {
    let old = old.get("spec").unwrap_or(&Value::Null);
    let new = object_mut(new, "spec");
    if has_cluster_ip(old) && has_cluster_ip(new) && text(new, "clusterIP").is_empty() {
        copy_field(new, old, "clusterIP");
        copy_field(new, old, "clusterIPs");
    }
    if has_node_ports(old) && has_node_ports(new) {
        keep_node_ports(new, old);
    }
    drop_of_old_type(new, old);
}

fn has_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        NODE_PORT => true,
        LOAD_BALANCER => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let same = |a: &Value, b: &Value| a.get("port") == b.get("port") && text(a, "protocol") == text(b, "protocol");
    for port in items_mut(new, "ports") {
        if int(port, "nodePort").unwrap_or_default() == 0
            && let Some(before) = items(old, "ports").iter().find(|before| same(before, port))
        {
            copy_field(port, before, "nodePort");
        }
    }
    if text(new, "externalTrafficPolicy") == "Local" && int(new, "healthCheckNodePort").unwrap_or_default() == 0 {
        copy_field(new, old, "healthCheckNodePort");
    }
}

/// A client that only changes the type sends the old type's fields along; those that it left as they were go.
fn drop_of_old_type(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, key: &str| new.get(key) == old.get(key);
    if has_cluster_ip(old) && !has_cluster_ip(new) && unchanged(new, "clusterIP") {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            unset(new, key);
        }
    }
    let node_ports = |spec: &Value| -> Vec<i64> {
        items(spec, "ports").iter().map(|port| int(port, "nodePort").unwrap_or_default()).collect()
    };
    if has_node_ports(old) && !has_node_ports(new) && node_ports(new) == node_ports(old) {
        for port in items_mut(new, "ports") {
            unset(port, "nodePort");
        }
    }
    if text(old, "type") == LOAD_BALANCER && text(new, "type") != LOAD_BALANCER {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            if unchanged(new, key) {
                unset(new, key);
            }
        }
    }
    if !externally_accessible(new) && unchanged(new, "externalTrafficPolicy") {
        unset(new, "externalTrafficPolicy");
    }
    if text(new, "clusterIP") == HEADLESS && text(old, "type") == EXTERNAL_NAME {
        new["clusterIPs"] = json!([HEADLESS]);
    }
}

fn unset(object: &mut Value, key: &str) {
    if let Some(fields) = object.as_object_mut() {
        Map::remove(fields, key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_service_is_filled_in() {
        let mut object = json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
        service(&mut object);
        let expected = json!({"spec": {"selector": {"a": "b"}, "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}});
        assert_eq!(object, expected);
        service(&mut object);
        assert_eq!(object, expected, "idempotent");
    }

    #[test]
    fn defaults_follow_the_type() {
        let table = [
            (json!({"type": "NodePort"}), "externalTrafficPolicy", json!("Cluster")),
            (json!({"type": "LoadBalancer"}), "allocateLoadBalancerNodePorts", json!(true)),
            (json!({"type": "ExternalName"}), "internalTrafficPolicy", Value::Null),
            (json!({"type": "ExternalName"}), "ipFamilies", Value::Null),
            (json!({"clusterIP": "None"}), "clusterIPs", json!(["None"])),
            (json!({"clusterIPs": ["10.96.0.9"]}), "clusterIP", json!("10.96.0.9")),
            (
                json!({"sessionAffinity": "ClientIP"}),
                "sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": 10800}}),
            ),
        ];
        for (spec, field, expected) in table {
            let mut object = json!({"spec": spec});
            service(&mut object);
            assert_eq!(object["spec"][field], expected, "{spec} {field}");
        }
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut replaced = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP"}]}});
        carry_over(&mut replaced, &old);
        assert_eq!(replaced, old);
        let mut inward = old.clone();
        inward["spec"]["type"] = "ClusterIP".into();
        carry_over(&mut inward, &old);
        assert_eq!(
            inward,
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                "ports": [{"port": 80, "protocol": "TCP"}]}})
        );
        let mut name = old.clone();
        name["spec"]["type"] = "ExternalName".into();
        carry_over(&mut name, &old);
        assert_eq!(name["spec"].get("clusterIP"), None);
    }
}
