//! What `kubectl get services` shows.

use serde_json::Value;

use crate::{
    field::{int, items, some_text, text},
    kinds::print,
    table::Column,
};

pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Type", "How the service is reached."),
    Column::text("Cluster-IP", "Its address inside the cluster."),
    Column::text("External-IP", "Its addresses outside."),
    Column::text("Port(s)", "Its ports, and the nodes' ports that lead to them."),
    Column::AGE,
    Column::text("Selector", "The labels of the pods behind it.").wide(),
];

pub fn cells(object: &Value, now: i64) -> Vec<Value> {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    vec![
        print::name(object),
        text(spec, "type").into(),
        cluster_ip(spec).into(),
        external_ips(object, spec).into(),
        ports(spec).into(),
        print::age(object, now),
        print::labels(spec, "selector").into(),
    ]
}

fn cluster_ip(spec: &Value) -> String {
    match items(spec, "clusterIPs").first().and_then(Value::as_str) {
        Some(ip) if !ip.is_empty() => ip.to_owned(),
        _ => print::text_or_none(spec, "clusterIP"),
    }
}

fn external_ips(object: &Value, spec: &Value) -> String {
    let fixed: Vec<&str> = items(spec, "externalIPs").iter().filter_map(Value::as_str).collect();
    match text(spec, "type") {
        "ExternalName" => print::text_or_none(spec, "externalName"),
        "LoadBalancer" => {
            let assigned = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
            let assigned = assigned.into_iter().flatten();
            let assigned = assigned.filter_map(|ingress| some_text(ingress, "ip").or(some_text(ingress, "hostname")));
            let mut all: Vec<&str> = assigned.collect();
            all.sort_unstable();
            all.dedup();
            all.extend(fixed);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => print::or_none(fixed.join(",")),
    }
}

/// `80/TCP,443:30443/TCP`
fn ports(spec: &Value) -> String {
    let ports = items(spec, "ports").iter().map(|port| {
        let number = int(port, "port").unwrap_or_default();
        let protocol = text(port, "protocol");
        match int(port, "nodePort") {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    print::or_none(ports.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_by_type() {
        let table = [
            (
                json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "selector": {"a": "b"},
                    "ports": [{"port": 80, "protocol": "TCP"}]}}),
                ["ClusterIP", "10.96.0.1", "<none>", "80/TCP", "a=b"],
            ),
            (
                json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.2", "externalIPs": ["1.2.3.4"],
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
                ["NodePort", "10.96.0.2", "1.2.3.4", "80:30080/TCP,53/UDP", "<none>"],
            ),
            (
                json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.3"}}),
                ["LoadBalancer", "10.96.0.3", "<pending>", "<none>", "<none>"],
            ),
            (
                json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.3"},
                    "status": {"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}]}}}),
                ["LoadBalancer", "10.96.0.3", "9.9.9.9", "<none>", "<none>"],
            ),
            (
                json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
                ["ExternalName", "<none>", "example.com", "<none>", "<none>"],
            ),
            (
                json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}}),
                ["ClusterIP", "None", "<none>", "<none>", "<none>"],
            ),
        ];
        for (object, [kind, ip, external, ports, selector]) in table {
            let row = cells(&object, 0);
            assert_eq!(row[1..5], [kind.into(), ip.into(), external.into(), ports.into()] as [Value; 4]);
            assert_eq!(row[6], selector);
        }
    }
}
