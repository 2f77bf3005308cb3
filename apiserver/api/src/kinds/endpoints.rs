//! Endpoints: the addresses behind a service, all in one object.

use k8s_openapi::api::core::v1::Endpoints;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::{int, items, text},
    registry::{Kind, Strategy},
    table::Column,
};

pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    columns: &[Column::NAME, Column::text("Endpoints", "The first addresses that are ready."), Column::AGE],
    strategy: &EndpointsStrategy,
    check: decode::check::<Endpoints>,
    ..BASE
};

struct EndpointsStrategy;

impl Strategy for EndpointsStrategy {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![print::name(object), ready_addresses(object).into(), print::age(object, now)]
    }
}

/// Addresses that the table names before it only counts.
const SHOWN: usize = 3;

/// `10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...`
fn ready_addresses(object: &Value) -> String {
    let mut shown = Vec::new();
    for subset in items(object, "subsets") {
        let addresses = items(subset, "addresses");
        let ports = items(subset, "ports");
        if ports.is_empty() {
            shown.extend(addresses.iter().map(|address| text(address, "ip").to_owned()));
        }
        for port in ports {
            let port = int(port, "port").unwrap_or_default();
            shown.extend(addresses.iter().map(|address| host_and_port(text(address, "ip"), port)));
        }
    }
    let more = shown.len().saturating_sub(SHOWN);
    shown.truncate(SHOWN);
    let text = print::or_none(shown.join(","));
    if more == 0 { text } else { format!("{text} + {more} more...") }
}

fn host_and_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_name_three_addresses() {
        let ips: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let object = json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]});
        assert_eq!(ready_addresses(&object), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
        assert_eq!(ready_addresses(&json!({})), "<none>");
        let six = json!({"subsets": [{"addresses": [{"ip": "::1"}], "ports": [{"port": 80}]}]});
        assert_eq!(ready_addresses(&six), "[::1]:80");
    }
}
