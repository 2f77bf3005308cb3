//! Endpoints: the addresses behind a service, all in one object.

use serde_json::Value;

use super::{BASE, object_meta, pod, print};
use crate::{
    field::{Errors, Path, int, items, items_mut, set_default_text, text},
    names,
    registry::{Kind, Part, Strategy},
    status::Cause,
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
    ..BASE
};

struct EndpointsStrategy;

impl Strategy for EndpointsStrategy {
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                set_default_text(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        subsets(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![print::name(object), ready_addresses(object).into(), print::age(object, now)]
    }
}

fn subsets(errors: &mut Errors, object: &Value) {
    let list = Path::root("subsets");
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let at = list.index(index);
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errors.required(&at, "a subset has addresses, ready or not");
        }
        for key in ["addresses", "notReadyAddresses"] {
            let list = at.child(key);
            for (index, address) in items(subset, key).iter().enumerate() {
                endpoint_ip(errors, &list.index(index).child("ip"), text(address, "ip"));
            }
        }
        let list = at.child("ports");
        let ports = items(subset, "ports");
        for (index, port) in ports.iter().enumerate() {
            let at = list.index(index);
            match text(port, "name") {
                "" if ports.len() > 1 => errors.required(&at.child("name"), ""),
                "" => {}
                name => errors.complaints(&at.child("name"), name, names::dns1123_label(name)),
            }
            let number = int(port, "port").unwrap_or_default();
            for complaint in names::port_number(number) {
                errors.invalid(&at.child("port"), &number.into(), &complaint);
            }
            pod::protocol_known(errors, &at.child("protocol"), text(port, "protocol"));
        }
    }
}

/// An address that a service may lead to: not one that means another machine on every machine.
pub fn endpoint_ip(errors: &mut Errors, at: &Path<'_>, text: &str) {
    errors.complaints(at, text, names::ip(text));
    let Ok(ip) = text.parse::<std::net::IpAddr>() else { return };
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let kind = match ip {
        _ if ip.is_unspecified() => "unspecified",
        _ if ip.is_loopback() => "in the loopback range",
        _ if ip.is_multicast() => "in the multicast range",
        _ if link_local => "in the link-local range",
        _ => return,
    };
    errors.invalid_str(at, text, &format!("may not be {kind}"));
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
    fn addresses_and_ports_are_checked() {
        let table = [
            (json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}), ""),
            (json!({"ports": [{"port": 80}]}), "subsets[0]"),
            (json!({"addresses": [{"ip": "127.0.0.1"}]}), "subsets[0].addresses[0].ip"),
            (json!({"addresses": [{"ip": "a"}]}), "subsets[0].addresses[0].ip"),
            (
                json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}, {"port": 0, "name": "b"}]}),
                "subsets[0].ports[0].name subsets[0].ports[1].port",
            ),
        ];
        for (subset, expected) in table {
            let mut object = json!({"metadata": {"name": "a", "namespace": "n"}, "subsets": [subset]});
            EndpointsStrategy.default(&mut object);
            let fields: Vec<String> = EndpointsStrategy.validate(&object).into_iter().map(|c| c.field).collect();
            assert_eq!(fields.join(" "), expected);
        }
    }

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
