//! Service addresses and node ports: which a service has, which it needs, which it gives back. Pure: the caller says
//! what is taken and commits the result with the service in one transaction, so no two servers hand out one address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
};

use api::{
    meta,
    registry::Kind,
    status::{Cause, CauseReason, Status},
};
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Compare, Op};

use crate::keys;

pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Addresses at the bottom of the range that are only given on request, so that fixed ones rarely collide.
const MAX_STATIC_BAND: u32 = 256;
const MIN_STATIC_BAND: u32 = 16;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl Cidr {
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, prefix) = text.split_once('/')?;
        let (ip, prefix): (Ipv4Addr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
        // A smaller range has no room for services, a larger one no meaning.
        (8..=28).contains(&prefix).then(|| Self { base: u32::from(ip) & (u32::MAX << (32 - prefix)), prefix })
    }

    pub fn nth(self, n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.base + n))
    }

    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    pub fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        let net = |base: u32| base & (u32::MAX << (32 - prefix));
        net(self.base) == net(other.base)
    }

    pub fn contains(self, ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V4(ip) if u32::from(ip) & (u32::MAX << (32 - self.prefix)) == self.base)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.nth(0), self.prefix)
    }
}

/// What a server knows about addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    pub services: Cidr,
    /// Given to nobody who does not ask for it by name.
    pub dns: IpAddr,
}

/// What a write has to check and do besides writing the service.
#[derive(Debug, Default, PartialEq)]
pub struct Claims {
    pub compare: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// What a service holds.
#[derive(Debug, Default, PartialEq)]
struct Held {
    ip: Option<IpAddr>,
    ports: BTreeSet<u16>,
}

pub fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// Completes `new` (none for a delete) with addresses, and says what to claim and release against `old`.
pub fn settle(
    kind: &Kind,
    ranges: &Ranges,
    old: Option<&Value>,
    new: Option<&mut Value>,
    taken: &dyn Fn(&[u8]) -> bool,
    random: u64,
) -> Result<Claims, Status> {
    let had = old.map(held).unwrap_or_default();
    let Some(new) = new else { return Ok(claims(&had, &Held::default(), "")) };
    if let Some(old) = old {
        carry_over(new, old);
    }
    let mut causes = Vec::new();
    cluster_ip(ranges, &had, new, taken, random, &mut causes);
    node_ports(&had, new, taken, random, &mut causes);
    if !causes.is_empty() {
        return Err(Status::invalid(kind, meta::name(new), causes));
    }
    let owner = format!("{}/{}", meta::namespace(new), meta::name(new));
    Ok(claims(&had, &held(new), &owner))
}

fn claims(had: &Held, has: &Held, owner: &str) -> Claims {
    let keys = |held: &Held| -> BTreeSet<Bytes> {
        held.ip.map(keys::cluster_ip).into_iter().chain(held.ports.iter().map(|p| keys::node_port(*p))).collect()
    };
    let (had, has) = (keys(had), keys(has));
    let mut out = Claims::default();
    for key in has.difference(&had) {
        out.compare.push(Compare::ModRevision { key: key.clone(), equals: 0 });
        out.ops.push(Op::Put { key: key.clone(), value: Bytes::copy_from_slice(owner.as_bytes()), lease: None });
    }
    for key in had.difference(&has) {
        out.ops.push(Op::Delete { start: key.clone(), end: None });
    }
    out
}

fn held(service: &Value) -> Held {
    let ip = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|p| u16::try_from(p["nodePort"].as_u64()?).ok()).filter(|p| *p != 0);
    Held { ip, ports: ports.collect() }
}

fn kind_of(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn has_cluster_ip(service: &Value) -> bool {
    kind_of(service) != "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// An update that leaves an address out means the one it has.
fn carry_over(new: &mut Value, old: &Value) {
    if has_cluster_ip(new) && has_cluster_ip(old) && new["spec"]["clusterIP"].as_str().unwrap_or("").is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(field) {
                new["spec"][field] = value.clone();
            }
        }
    }
    let keeps_ports = has_node_ports(new) && has_node_ports(old);
    let old_ports: Vec<Value> = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let loses_ports = !has_node_ports(new) && has_node_ports(old);
    for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = old_ports.iter().find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"]);
        let Some(same) = same.and_then(|o| o.get("nodePort")) else { continue };
        match port.get("nodePort").and_then(Value::as_u64) {
            None | Some(0) if keeps_ports => port["nodePort"] = same.clone(),
            // A client that changes the type sends the ports that it read.
            Some(_) if loses_ports && port.get("nodePort") == Some(same) => {
                if let Some(port) = port.as_object_mut() {
                    port.remove("nodePort");
                }
            }
            _ => {}
        }
    }
}

fn cluster_ip(
    ranges: &Ranges,
    had: &Held,
    new: &mut Value,
    taken: &dyn Fn(&[u8]) -> bool,
    random: u64,
    causes: &mut Vec<Cause>,
) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
        return;
    }
    let given = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let refuse = |causes: &mut Vec<Cause>, why: String| {
        let message = format!("Invalid value: [\"{given}\"]: failed to allocate IP {given}: {why}");
        causes.push(Cause { reason: CauseReason::FieldValueInvalid, message, field: "spec.clusterIPs".into() });
    };
    let ip = match given.as_str() {
        "None" => "None".to_owned(),
        "" => match pick_ip(ranges, taken, random) {
            Some(ip) => ip.to_string(),
            None => return refuse(causes, "range is full".into()),
        },
        // Other forms of text are validation's to refuse.
        given => {
            if let Ok(ip) = given.parse::<IpAddr>()
                && had.ip != Some(ip)
            {
                if !ranges.services.contains(ip) {
                    let range = ranges.services;
                    return refuse(causes, format!("the provided IP is not in the valid range {range}"));
                }
                if taken(&keys::cluster_ip(ip)) {
                    return refuse(causes, "provided IP is already allocated".into());
                }
            }
            given.to_owned()
        }
    };
    spec.insert("clusterIPs".into(), json!([ip]));
    spec.insert("clusterIP".into(), ip.into());
}

/// A free address, begun at a random place so that servers and services do not crowd.
fn pick_ip(ranges: &Ranges, taken: &dyn Fn(&[u8]) -> bool, random: u64) -> Option<IpAddr> {
    let size = ranges.services.size();
    let band = (size / 16).clamp(MIN_STATIC_BAND.min(size / 2), MAX_STATIC_BAND);
    // Neither the network's own address nor the broadcast address; the static band last.
    let (upper, lower) = (band..size - 1, 1..band);
    let start = (random % u64::from(upper.end - upper.start)) as u32 + upper.start;
    let order = (start..upper.end).chain(upper.start..start).chain(lower);
    order.map(|n| ranges.services.nth(n)).find(|ip| *ip != ranges.dns && !taken(&keys::cluster_ip(*ip)))
}

fn node_ports(had: &Held, new: &mut Value, taken: &dyn Fn(&[u8]) -> bool, random: u64, causes: &mut Vec<Cause>) {
    if !has_node_ports(new) {
        return;
    }
    let mut mine: BTreeSet<u16> = held(new).ports;
    let Some(ports) = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else { return };
    for (i, port) in ports.iter_mut().enumerate() {
        let given = port["nodePort"].as_u64().unwrap_or(0);
        let mut refuse = |why: &str| {
            causes.push(Cause {
                reason: CauseReason::FieldValueInvalid,
                message: format!("Invalid value: {given}: {why}"),
                field: format!("spec.ports[{i}].nodePort"),
            });
        };
        match u16::try_from(given) {
            Ok(0) => match pick_port(&mine, taken, random.wrapping_add(i as u64)) {
                Some(port_number) => {
                    mine.insert(port_number);
                    port["nodePort"] = port_number.into();
                }
                None => refuse("every node port is taken"),
            },
            Ok(given) if had.ports.contains(&given) => {}
            Ok(given) if !NODE_PORTS.contains(&given) => {
                refuse("provided port is not in the valid range. The range of valid ports is 30000-32767");
            }
            Ok(given) if taken(&keys::node_port(given)) => refuse("provided port is already allocated"),
            Ok(_) => {}
            Err(_) => refuse("provided port is not in the valid range. The range of valid ports is 30000-32767"),
        }
    }
}

fn pick_port(mine: &BTreeSet<u16>, taken: &dyn Fn(&[u8]) -> bool, random: u64) -> Option<u16> {
    let (first, count) = (*NODE_PORTS.start(), NODE_PORTS.end() - NODE_PORTS.start() + 1);
    let start = (random % u64::from(count)) as u16;
    (0..count).map(|n| first + (start + n) % count).find(|port| !mine.contains(port) && !taken(&keys::node_port(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges { services: Cidr::parse("10.96.0.0/24").unwrap(), dns: "10.96.0.10".parse().unwrap() }
    }

    fn run(old: Option<&Value>, new: Option<&mut Value>, taken: &[&str]) -> Result<Claims, Status> {
        let kind = api::registry::by_plural("", "v1", "services").unwrap();
        settle(kind, &ranges(), old, new, &|key| taken.iter().any(|t| t.as_bytes() == key), 5)
    }

    fn service(kind: &str, ip: &str, ports: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"type": kind, "clusterIP": ip, "ports": ports}})
    }

    fn written(claims: &Claims) -> Vec<String> {
        let key = |op: &Op| match op {
            Op::Put { key, .. } => format!("+{}", String::from_utf8_lossy(key)),
            Op::Delete { start, .. } => format!("-{}", String::from_utf8_lossy(start)),
            Op::Range { .. } | Op::Update { .. } | Op::Txn(_) => String::new(),
        };
        claims.ops.iter().map(key).collect()
    }

    #[test]
    fn ranges_parse() {
        assert_eq!(Cidr::parse("10.96.3.0/16").unwrap().to_string(), "10.96.0.0/16");
        for bad in ["10.96.0.0", "10.96.0.0/33", "10.96.0.0/4", "x/16", "fd00::/64"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_new_service_gets_what_it_needs() {
        let mut s = service("NodePort", "", json!([{"port": 80}, {"port": 81, "nodePort": 30080}]));
        let claims =
            run(None, Some(&mut s), &["/allocations/clusterip/10.96.0.21", "/allocations/nodeport/30005"]).unwrap();
        assert_eq!(s["spec"]["clusterIP"], "10.96.0.22");
        assert_eq!(s["spec"]["clusterIPs"], json!(["10.96.0.22"]));
        assert_eq!(s["spec"]["ports"][0]["nodePort"], 30006);
        let want =
            ["+/allocations/clusterip/10.96.0.22", "+/allocations/nodeport/30006", "+/allocations/nodeport/30080"];
        assert_eq!(written(&claims), want);
        assert_eq!(claims.compare.len(), 3);

        let mut headless = service("ClusterIP", "None", json!([]));
        assert_eq!(run(None, Some(&mut headless), &[]).unwrap(), Claims::default());
        let mut external = service("ExternalName", "", json!([]));
        assert_eq!(run(None, Some(&mut external), &[]).unwrap(), Claims::default());
        assert_eq!(external["spec"].get("clusterIP"), None);
    }

    #[test]
    fn what_is_taken_or_out_of_range_is_refused() {
        for (ip, port, field) in [
            ("10.96.0.9", 0, "spec.clusterIPs"),
            ("10.97.0.9", 0, "spec.clusterIPs"),
            ("", 30009, "spec.ports[0].nodePort"),
            ("", 80, "spec.ports[0].nodePort"),
        ] {
            let mut s = service("NodePort", ip, json!([{"port": 80, "nodePort": port}]));
            let taken = ["/allocations/clusterip/10.96.0.9", "/allocations/nodeport/30009"];
            let status = run(None, Some(&mut s), &taken).unwrap_err();
            assert_eq!((status.code, status.details.causes[0].field.as_str()), (422, field), "{ip} {port}");
        }
    }

    #[test]
    fn updates_keep_and_release() {
        let old = service("NodePort", "10.96.0.30", json!([{"port": 80, "nodePort": 30080}]));
        let mut same = service("NodePort", "", json!([{"port": 80}]));
        assert_eq!(run(Some(&old), Some(&mut same), &[]).unwrap(), Claims::default());
        assert_eq!(
            (&same["spec"]["clusterIP"], &same["spec"]["ports"]),
            (&old["spec"]["clusterIP"], &old["spec"]["ports"])
        );
        let mut plain = service("ClusterIP", "10.96.0.30", json!([{"port": 80, "nodePort": 30080}]));
        assert_eq!(written(&run(Some(&old), Some(&mut plain), &[]).unwrap()), ["-/allocations/nodeport/30080"]);
        let mut external = service("ExternalName", "10.96.0.30", json!([]));
        let released = ["-/allocations/clusterip/10.96.0.30", "-/allocations/nodeport/30080"];
        assert_eq!(written(&run(Some(&old), Some(&mut external), &[]).unwrap()), released);
        assert_eq!(written(&run(Some(&old), None, &[]).unwrap()), released);
    }

    #[test]
    fn a_full_range_says_so_and_dns_is_kept() {
        let all = |key: &[u8]| key != b"/allocations/clusterip/10.96.0.10";
        let kind = api::registry::by_plural("", "v1", "services").unwrap();
        let mut s = service("ClusterIP", "", json!([]));
        assert_eq!(settle(kind, &ranges(), None, Some(&mut s), &all, 0).unwrap_err().code, 422);
        let mut dns = service("ClusterIP", "10.96.0.10", json!([]));
        assert!(settle(kind, &ranges(), None, Some(&mut dns), &all, 0).is_ok());
    }
}
