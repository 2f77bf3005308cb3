//! EndpointSlice: some of the addresses behind a service.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::{int, items, text},
    registry::{Kind, Strategy},
    table::Column,
};

pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    columns: &[
        Column::NAME,
        Column::text("AddressType", "IPv4, IPv6 or FQDN."),
        Column::text("Ports", "The first ports."),
        Column::text("Endpoints", "The first addresses."),
        Column::AGE,
    ],
    strategy: &EndpointSlices,
    check: decode::check::<EndpointSlice>,
    ..BASE
};

struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![
            print::name(object),
            text(object, "addressType").into(),
            ports(object).into(),
            addresses(object).into(),
            print::age(object, now),
        ]
    }
}

/// Ports and addresses that the table names before it only counts.
const SHOWN: usize = 3;

fn ports(object: &Value) -> String {
    let ports = items(object, "ports");
    if ports.is_empty() {
        return print::UNSET.to_owned();
    }
    let shown = ports.iter().map(|port| int(port, "port").map_or_else(|| "*".to_owned(), |port| port.to_string()));
    shorten(shown.collect())
}

fn addresses(object: &Value) -> String {
    let endpoints = items(object, "endpoints").iter();
    let shown: Vec<String> = endpoints
        .flat_map(|endpoint| items(endpoint, "addresses"))
        .map(|address| address.as_str().unwrap_or_default().to_owned())
        .collect();
    if shown.is_empty() { print::UNSET.to_owned() } else { shorten(shown) }
}

fn shorten(mut shown: Vec<String>) -> String {
    let more = shown.len().saturating_sub(SHOWN);
    shown.truncate(SHOWN);
    let text = shown.join(",");
    if more == 0 { text } else { format!("{text} + {more} more...") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_ports_and_addresses() {
        let object = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "ports": [{"port": 80}, {}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        let row = EndpointSlices.row(&object, 0);
        assert_eq!(row, [json!("a"), json!("IPv4"), json!("80,*"), json!("10.0.0.1,10.0.0.2"), json!("<unknown>")]);
        assert_eq!(ports(&json!({})), "<unset>");
        assert_eq!(addresses(&json!({})), "<unset>");
    }
}
