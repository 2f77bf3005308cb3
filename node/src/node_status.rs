//! The Node object: registered at the start, and its status kept true.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use client::{Cache, Client, Patch};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
        Taint,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use tokio::sync::watch;

use crate::server;

/// Status is sent again after so long even if nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Memory and disk are looked at so often.
pub const PRESSURE: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
const MAX_PODS: &str = "110";
/// Less available memory than this is pressure.
const MEMORY_LOW: u64 = 100 << 20;
/// Less of the disk than this, in hundredths, is pressure.
const DISK_LOW: u64 = 5;
pub const KUBELET_VERSION: &str = concat!("v1.35.0+minik8s.", env!("CARGO_PKG_VERSION"));

/// What stays the same while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub name: String,
    pub ip: IpAddr,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub data_dir: PathBuf,
    pub capacity: BTreeMap<String, Quantity>,
    pub allocatable: BTreeMap<String, Quantity>,
    pub memory: i64,
    pub info: NodeSystemInfo,
}

/// What changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A value of `/proc/meminfo` in bytes.
fn meminfo(name: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

impl Facts {
    pub fn gather(
        name: &str,
        ip: IpAddr,
        given: &BTreeMap<String, String>,
        taints: Vec<Taint>,
        data_dir: PathBuf,
    ) -> Facts {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut labels = BTreeMap::new();
        for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
            labels.insert(format!("{prefix}/os"), "linux".to_owned());
            labels.insert(format!("{prefix}/arch"), arch.to_owned());
        }
        labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
        labels.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
        let memory = meminfo("MemTotal");
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let disk = nix::sys::statvfs::statvfs(&data_dir).map_or(0, |fs| fs.blocks() * fs.fragment_size());
        let quantities = |memory: u64, disk: u64| -> BTreeMap<String, Quantity> {
            let pairs = [
                ("cpu", cpus.to_string()),
                ("memory", format!("{}Ki", memory / 1024)),
                ("ephemeral-storage", format!("{}Ki", disk / 1024)),
                ("pods", MAX_PODS.to_owned()),
            ];
            pairs.into_iter().map(|(name, value)| (name.to_owned(), Quantity(value))).collect()
        };
        let release = read("/etc/os-release");
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Facts {
            name: name.to_owned(),
            ip,
            labels,
            taints,
            data_dir,
            capacity: quantities(memory, disk),
            allocatable: quantities(memory.saturating_sub(MEMORY_LOW), disk / 100 * (100 - DISK_LOW)),
            memory: i64::try_from(memory).unwrap_or(i64::MAX),
            info: NodeSystemInfo {
                architecture: arch.to_owned(),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: concat!("minik8s://", env!("CARGO_PKG_VERSION")).to_owned(),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: KUBELET_VERSION.to_owned(),
                machine_id: read("/etc/machine-id"),
                operating_system: "linux".to_owned(),
                os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
                swap: None,
                system_uuid: read("/sys/class/dmi/id/product_uuid"),
            },
        }
    }

    fn pressure(&self) -> Pressure {
        let available = meminfo("MemAvailable");
        let disk = nix::sys::statvfs::statvfs(&self.data_dir);
        Pressure {
            memory: available > 0 && available < MEMORY_LOW,
            disk: disk.is_ok_and(|fs| fs.blocks() > 0 && fs.blocks_available() * 100 < fs.blocks() * DISK_LOW),
        }
    }
}

/// The status as of now. `previous` gives the times of conditions that have not changed. Pure.
pub fn status(
    facts: &Facts,
    ready: Result<(), &str>,
    pressure: Pressure,
    previous: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let condition = |kind: &str, holds: bool, reason: &str, message: String| {
        let status = if holds { "True" } else { "False" };
        let old = previous.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    let pressed = |holds: bool, what: &str, kind: &str, good: &str, bad: &str| {
        let (reason, message) = if holds {
            (bad, format!("the node has {what} pressure"))
        } else {
            (good, format!("the node has no {what} pressure"))
        };
        condition(kind, holds, reason, message)
    };
    let (reason, message) = match ready {
        Ok(()) => ("KubeletReady", "the node is ready for pods".to_owned()),
        Err(why) => ("KubeletNotReady", why.to_owned()),
    };
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![address("InternalIP", facts.ip.to_string()), address("Hostname", facts.name.clone())]),
        capacity: Some(facts.capacity.clone()),
        allocatable: Some(facts.allocatable.clone()),
        conditions: Some(vec![
            pressed(
                pressure.memory,
                "memory",
                "MemoryPressure",
                "KubeletHasSufficientMemory",
                "KubeletHasInsufficientMemory",
            ),
            pressed(pressure.disk, "disk", "DiskPressure", "KubeletHasNoDiskPressure", "KubeletHasDiskPressure"),
            pressed(false, "PID", "PIDPressure", "KubeletHasSufficientPID", "KubeletHasInsufficientPID"),
            condition("Ready", ready.is_ok(), reason, message),
        ]),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(server::PORT) }),
        }),
        node_info: Some(facts.info.clone()),
        ..NodeStatus::default()
    }
}

/// Whether two statuses say the same, heartbeats aside.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    strip(a) == strip(b)
}

/// The server shows another state of this node's conditions than this node does: somebody has declared it dead.
fn contradicted(shown: &NodeStatus, own: &NodeStatus) -> bool {
    own.conditions.iter().flatten().any(|condition| {
        let other = shown.conditions.iter().flatten().find(|c| c.type_ == condition.type_);
        other.is_none_or(|c| c.status != condition.status)
    })
}

/// Creates the Node, or brings labels of an existing one up to date. Taints are only for a new one: those of a node that
/// comes back are its administrator's.
async fn register(client: &Client, facts: &Facts, status: &NodeStatus) -> Result<(), client::Error> {
    let node = Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            labels: Some(facts.labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!facts.taints.is_empty()).then(|| facts.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status.clone()),
    };
    match client.create(&node).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_already_exists() => {
            let patch = Patch::Merge(serde_json::json!({"metadata": {"labels": facts.labels}}));
            client.patch::<Node>("", &facts.name, &patch).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

/// Keeps the Node object true until dropped. `network` says whether pods can be connected.
pub async fn run(client: Client, facts: Arc<Facts>, nodes: Arc<Cache<Node>>, mut network: watch::Receiver<bool>) {
    let mut changes = nodes.subscribe();
    let mut pause = RETRY_FIRST;
    let mut sent: Option<(NodeStatus, tokio::time::Instant)> = None;
    let mut registered = false;
    let mut pressure = tokio::time::interval(PRESSURE);
    loop {
        let shown = nodes.get("", &facts.name);
        let cidr = shown.as_ref().is_some_and(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()));
        let ready = match (cidr, *network.borrow_and_update()) {
            (false, _) => Err("the node has no pod addresses yet (podCIDR)"),
            (true, false) => Err("the node's pod network is not up yet"),
            (true, true) => Ok(()),
        };
        let shown_status = shown.as_ref().and_then(|n| n.status.clone()).unwrap_or_default();
        // What others have written in this node's stead is what changes now, and not what was sent before that.
        let before = match &sent {
            Some((status, _)) if shown.is_none() || !contradicted(&shown_status, status) => status,
            Some(_) | None => &shown_status,
        };
        let current = status(&facts, ready, facts.pressure(), before, Timestamp::now());
        // Deleted under a running agent: the node is created again.
        registered &= sent.is_none() || shown.is_some();
        let stale = match &sent {
            None => true,
            Some((status, at)) => {
                !same(status, &current) || at.elapsed() >= HEARTBEAT || contradicted(&shown_status, &current)
            }
        };
        if stale || !registered {
            let work = async {
                if !registered {
                    register(&client, &facts, &current).await?;
                }
                push(&client, &facts.name, &current).await
            };
            match work.await {
                Ok(revision) => {
                    registered = true;
                    pause = RETRY_FIRST;
                    sent = Some((current, tokio::time::Instant::now()));
                    // What the cache shows from here on includes this write.
                    let seen = tokio::time::timeout(RETRY_LAST, nodes.wait_for(revision)).await;
                    if seen.is_err() {
                        tracing::debug!("the node's own status is slow to come back");
                    }
                    continue;
                }
                Err(error) => {
                    if error.is_not_found() {
                        registered = false;
                    }
                    tracing::debug!(%error, "the node's status could not be written");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                    continue;
                }
            }
        }
        tokio::select! {
            update = changes.next() => if update.is_none() { return },
            changed = network.changed() => if changed.is_err() { return },
            _ = pressure.tick() => {}
        }
    }
}

/// Gives the revision at which the status was written.
async fn push(client: &Client, name: &str, status: &NodeStatus) -> Result<u64, client::Error> {
    let patch = Patch::Strategic(serde_json::json!({"status": status}));
    let written = client.patch_status::<Node>("", name, &patch).await?;
    Ok(client::object::revision(&written))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let given = [("disk".to_owned(), "ssd".to_owned())].into();
        Facts::gather("n1", IpAddr::from([192, 0, 2, 1]), &given, Vec::new(), "/".into())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn readiness_is_told_with_its_reason() {
        let facts = facts();
        let first = status(&facts, Err("no network"), Pressure::default(), &NodeStatus::default(), at(1));
        let second = status(&facts, Ok(()), Pressure { memory: true, disk: false }, &first, at(2));
        let third = status(&facts, Ok(()), Pressure { memory: true, disk: false }, &second, at(3));
        let show = |status: &NodeStatus| -> Vec<(String, String, i64)> {
            let second = |c: &NodeCondition| c.last_transition_time.as_ref().map_or(0, |t| t.0.as_second());
            status.conditions.iter().flatten().map(|c| (c.type_.clone(), c.status.clone(), second(c))).collect()
        };
        let row = |kind: &str, status: &str, at: i64| (kind.to_owned(), status.to_owned(), at);
        assert_eq!(show(&first)[3], row("Ready", "False", 1));
        let expected = [
            row("MemoryPressure", "True", 2),
            row("DiskPressure", "False", 1),
            row("PIDPressure", "False", 1),
            row("Ready", "True", 2),
        ];
        assert_eq!(show(&second), expected);
        assert!(same(&second, &third) && !same(&first, &second));
        assert!(contradicted(&first, &second) && !contradicted(&second, &third));
    }

    #[test]
    fn facts_come_from_the_machine() {
        let facts = facts();
        assert_eq!(facts.labels["disk"], "ssd");
        assert_eq!(facts.labels["kubernetes.io/hostname"], "n1");
        assert!(facts.memory > 0);
        assert!(api::quantity::milli(&facts.allocatable["cpu"]) >= 1000);
    }
}
