//! EndpointSlice: some of the addresses behind a service.

use serde_json::Value;

use super::{BASE, endpoints, object_meta, pod, print};
use crate::{
    field::{Errors, Path, int, items, items_mut, set_default, set_default_text, text},
    names,
    registry::{Kind, Part, Strategy},
    status::Cause,
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
    ..BASE
};

struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, "ports") {
            set_default_text(port, "protocol", "TCP");
            set_default(port, "name", "");
        }
        for endpoint in items_mut(object, "endpoints") {
            set_default(endpoint, "conditions", serde_json::Map::new());
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        contents(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.immutable(&Path::root("addressType"), new.get("addressType"), old.get("addressType"));
        errors.0
    }

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

/// Endpoints of a slice; a service with more has several slices.
const MAX_ENDPOINTS: usize = 1000;
/// Addresses that one endpoint may have.
const MAX_ADDRESSES: usize = 100;

fn contents(errors: &mut Errors, object: &Value) {
    let kind = text(object, "addressType");
    let at = Path::root("addressType");
    match kind {
        "" => errors.required(&at, ""),
        _ => errors.one_of(&at, Some(kind), &["IPv4", "IPv6", "FQDN"]),
    }
    let list = Path::root("endpoints");
    let endpoints = items(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&list, endpoints.len(), MAX_ENDPOINTS);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let at = list.index(index);
        let list = at.child("addresses");
        let addresses = items(endpoint, "addresses");
        match addresses.len() {
            0 => errors.required(&list, "an endpoint has an address"),
            count if count > MAX_ADDRESSES => errors.too_many(&list, count, MAX_ADDRESSES),
            _ => {}
        }
        for (index, address) in addresses.iter().enumerate() {
            address_fits(errors, &list.index(index), kind, address.as_str().unwrap_or_default());
        }
    }
    ports_fit(errors, object);
}

fn address_fits(errors: &mut Errors, at: &Path<'_>, kind: &str, address: &str) {
    match kind {
        "FQDN" => errors.complaints(at, address, names::dns1123_subdomain(address)),
        _ => {
            endpoints::endpoint_ip(errors, at, address);
            let six = address.contains(':');
            if (kind == "IPv4" && six) || (kind == "IPv6" && !six) {
                errors.invalid_str(at, address, &format!("must be an {kind} address"));
            }
        }
    }
}

fn ports_fit(errors: &mut Errors, object: &Value) {
    let list = Path::root("ports");
    let mut seen = std::collections::HashSet::new();
    for (index, port) in items(object, "ports").iter().enumerate() {
        let at = list.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.complaints(&at.child("name"), name, names::dns1123_label(name));
        }
        if !seen.insert(name) {
            errors.duplicate(&at.child("name"), &name.into());
        }
        // Zero stands for all ports, as an absent one does.
        if let Some(number) = int(port, "port").filter(|number| *number != 0) {
            for complaint in names::port_number(number) {
                errors.invalid(&at.child("port"), &number.into(), &complaint);
            }
        }
        pod::protocol_known(errors, &at.child("protocol"), text(port, "protocol"));
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
    fn contents_are_checked() {
        let table = [
            (json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 1}]}), ""),
            (json!({}), "addressType"),
            (json!({"addressType": "IPv4", "endpoints": [{}]}), "endpoints[0].addresses"),
            (json!({"addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}]}), "endpoints[0].addresses[0]"),
            (json!({"addressType": "IPv4", "ports": [{"port": 1}, {"port": 2}]}), "ports[1].name"),
        ];
        for (mut object, expected) in table {
            object["metadata"] = json!({"name": "a", "namespace": "n"});
            EndpointSlices.default(&mut object);
            let fields: Vec<String> = EndpointSlices.validate(&object).into_iter().map(|c| c.field).collect();
            assert_eq!(fields.join(" "), expected, "{object}");
        }
        let (old, new) = (json!({"addressType": "IPv4"}), json!({"addressType": "IPv6"}));
        assert_eq!(EndpointSlices.validate_update(&new, &old, Part::Main)[0].field, "addressType");
    }

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
