//! From a pod spec to what the runtime is asked for. Pure.

use std::path::PathBuf;

use api::quantity;
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements, SecurityContext},
    apimachinery::pkg::api::resource::Quantity,
};

use super::qos;
use crate::{
    env::{ConfigError, Environment, expand},
    netfiles,
    runtime::{ContainerSpec, Mount, Propagation, Qos, Resources, SandboxSpec, Seccomp, Security, UserSpec},
};

/// Microseconds of one CPU accounting period.
const CPU_PERIOD: u64 = 100_000;
/// The kernel refuses smaller quotas.
const CPU_QUOTA_MIN: i64 = 1_000;
/// Where a container writes its last words unless it says otherwise.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

pub fn sandbox(pod: &Pod, log_dir: PathBuf) -> SandboxSpec {
    let meta = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    let security = spec.security_context.as_ref();
    let sysctls = security.and_then(|s| s.sysctls.as_ref()).into_iter().flatten();
    SandboxSpec {
        uid: meta.uid.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        hostname: netfiles::hostname(pod),
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        log_dir,
        qos: qos_of(pod),
        resources: whole(&spec),
    }
}

fn qos_of(pod: &Pod) -> Qos {
    match qos::class(pod) {
        "Guaranteed" => Qos::Guaranteed,
        "Burstable" => Qos::Burstable,
        _ => Qos::BestEffort,
    }
}

fn shares(millis: i64) -> u64 {
    u64::try_from(millis * 1024 / 1000).unwrap_or(0).clamp(2, 262_144)
}

fn quota(millis: i64) -> i64 {
    (millis * 100).max(CPU_QUOTA_MIN)
}

/// A limit stands in for the request it has no partner for.
fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    let resources = resources?;
    let of = |map: &Option<std::collections::BTreeMap<String, Quantity>>| map.as_ref()?.get(name).cloned();
    of(&resources.requests).or_else(|| of(&resources.limits))
}

fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<Quantity> {
    resources?.limits.as_ref()?.get(name).cloned()
}

/// The pod's own limits: set only where every container has one.
fn whole(spec: &PodSpec) -> Resources {
    let millis = |c: &Container| request(c.resources.as_ref(), "cpu").as_ref().map(quantity::milli).unwrap_or(0);
    let sum = |name: &str, read: fn(&Quantity) -> i64| -> Option<i64> {
        let of = |c: &Container| limit(c.resources.as_ref(), name).as_ref().map(read).filter(|n| *n > 0);
        let mains: Option<i64> = spec.containers.iter().map(of).sum();
        // Init containers run before the main ones, sidecars beside them: the larger of both sides is enough.
        let (mut beside, mut before) = (0, 0);
        for container in spec.init_containers.iter().flatten() {
            let own = of(container)?;
            if container.restart_policy.as_deref() == Some("Always") {
                beside += own;
            } else {
                before = before.max(own + beside);
            }
        }
        Some((mains? + beside).max(before))
    };
    Resources {
        cpu_shares: Some(shares(spec.containers.iter().map(millis).sum())),
        cpu_quota: sum("cpu", quantity::milli).map(quota),
        cpu_period: Some(CPU_PERIOD),
        memory_limit: sum("memory", quantity::units),
        pids_limit: None,
    }
}

/// What a container is made from besides its spec.
pub struct Parts {
    pub attempt: u32,
    pub image: String,
    pub env: Environment,
    pub mounts: Vec<Mount>,
    pub log_path: PathBuf,
    /// Bytes of memory that the node has; the out-of-memory score is relative to it.
    pub node_memory: i64,
}

pub fn container(pod: &Pod, container: &Container, parts: Parts) -> Result<ContainerSpec, ConfigError> {
    let spec = pod.spec.as_ref().ok_or_else(|| ConfigError("the pod has no spec".to_owned()))?;
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| expand(word, |name| parts.env.get(name).map(str::to_owned))).collect()
    };
    let resources = container.resources.as_ref();
    let cpu_limit = limit(resources, "cpu").as_ref().map(quantity::milli).filter(|n| *n > 0);
    Ok(ContainerSpec {
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        name: container.name.clone(),
        attempt: parts.attempt,
        image: parts.image,
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()).map(PathBuf::from),
        mounts: parts.mounts,
        user: user(spec, container),
        security: security(spec, container)?,
        resources: Resources {
            cpu_shares: Some(shares(request(resources, "cpu").as_ref().map(quantity::milli).unwrap_or(0))),
            cpu_quota: cpu_limit.map(quota),
            cpu_period: Some(CPU_PERIOD),
            memory_limit: limit(resources, "memory").as_ref().map(quantity::units).filter(|n| *n > 0),
            pids_limit: None,
        },
        oom_score_adj: Some(oom_score(pod, container, parts.node_memory)),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        log_path: parts.log_path,
        env: parts.env.into_pairs(),
    })
}

/// Who goes first when memory runs out: the more of the node a container asked for, the later.
fn oom_score(pod: &Pod, container: &Container, node_memory: i64) -> i32 {
    match qos::class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let asked = request(container.resources.as_ref(), "memory").as_ref().map(quantity::units).unwrap_or(0);
            let score = 1000 - i128::from(asked) * 1000 / i128::from(node_memory.max(1));
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

fn user(spec: &PodSpec, container: &Container) -> UserSpec {
    let (own, of_pod) = (container.security_context.as_ref(), spec.security_context.as_ref());
    let groups = of_pod.iter().flat_map(|s| s.supplemental_groups.iter().flatten().chain(s.fs_group.as_ref()));
    UserSpec {
        uid: own.and_then(|s| s.run_as_user).or(of_pod.and_then(|s| s.run_as_user)),
        gid: own.and_then(|s| s.run_as_group).or(of_pod.and_then(|s| s.run_as_group)),
        supplemental_groups: groups.filter_map(|g| u32::try_from(*g).ok()).collect(),
        must_not_be_root: own
            .and_then(|s| s.run_as_non_root)
            .or(of_pod.and_then(|s| s.run_as_non_root))
            .unwrap_or(false),
    }
}

fn security(spec: &PodSpec, container: &Container) -> Result<Security, ConfigError> {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let of_pod = spec.security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let profile = own.seccomp_profile.as_ref().or_else(|| of_pod.and_then(|s| s.seccomp_profile.as_ref()));
    let seccomp = match profile.map(|p| p.type_.as_str()) {
        _ if privileged => Seccomp::Unconfined,
        None | Some("RuntimeDefault") => Seccomp::RuntimeDefault,
        Some("Unconfined") => Seccomp::Unconfined,
        Some(other) => return Err(ConfigError(format!("seccomp profiles of type {other} are not provided here"))),
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(Security {
        privileged,
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        read_only_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// A managed file at a path of the container, unless one of its volumes is mounted there.
pub fn managed_file(container: &Container, host_path: PathBuf, at: &str) -> Option<Mount> {
    let taken = container.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == at);
    (!taken).then(|| Mount {
        host_path,
        container_path: PathBuf::from(at),
        read_only: false,
        propagation: Propagation::None,
    })
}

/// The number of the signal that asks a container to end.
pub fn stop_signal(container: &Container, of_image: Option<&str>) -> i32 {
    let wanted = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()).or(of_image).unwrap_or("SIGTERM");
    let number = wanted.parse().ok().filter(|n| (1..=64).contains(n));
    let name = if wanted.starts_with("SIG") { wanted.to_owned() } else { format!("SIG{wanted}") };
    number
        .or_else(|| name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32))
        .unwrap_or(nix::sys::signal::Signal::SIGTERM as i32)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(pod: serde_json::Value) -> (SandboxSpec, ContainerSpec) {
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let parts = Parts {
            attempt: 2,
            image: "sha256:1".to_owned(),
            env: Environment::default(),
            mounts: Vec::new(),
            log_path: "/logs/c/2.log".into(),
            node_memory: 1 << 30,
        };
        let main = &pod.spec.as_ref().expect("a spec").containers[0];
        (sandbox(&pod, "/logs".into()), container(&pod, main, parts).expect("a container"))
    }

    #[test]
    fn resources_become_cgroup_values() {
        let (sandbox, container) = made(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {
            "containers": [{"name": "c", "resources": {
                "limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "250m", "memory": "128Mi"},
            }}],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}}],
        }}));
        let expected = Resources {
            cpu_shares: Some(256),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(256 << 20),
            pids_limit: None,
        };
        assert_eq!(container.resources, expected);
        assert_eq!(sandbox.resources, Resources { cpu_quota: Some(100_000), ..expected });
        assert_eq!((sandbox.qos, container.oom_score_adj), (Qos::Burstable, Some(875)));
    }

    #[test]
    fn security_context_of_container_wins_over_the_pods() {
        let (sandbox, container) = made(json!({"metadata": {"name": "p"}, "spec": {
            "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000],
                "runAsNonRoot": true, "sysctls": [{"name": "net.core.somaxconn", "value": "64"}]},
            "containers": [{"name": "c", "command": ["$(HOME)", "$$x"], "securityContext": {
                "runAsUser": 7, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            }}],
        }}));
        let user =
            UserSpec { uid: Some(7), gid: Some(2000), supplemental_groups: vec![4000, 3000], must_not_be_root: true };
        assert_eq!(container.user, user);
        assert!(container.security.no_new_privs && container.security.read_only_rootfs);
        assert_eq!(container.security.capabilities_drop, ["ALL"]);
        assert_eq!(container.command, ["$(HOME)", "$x"]);
        assert_eq!(sandbox.sysctls["net.core.somaxconn"], "64");
    }

    #[test]
    fn stop_signals_by_name_and_number() {
        let table = [(None, 15), (Some("SIGQUIT"), 3), (Some("QUIT"), 3), (Some("10"), 10), (Some("nonsense"), 15)];
        for (of_image, expected) in table {
            assert_eq!(stop_signal(&Container::default(), of_image), expected, "{of_image:?}");
        }
    }

    #[test]
    fn managed_files_give_way_to_volumes() {
        let value = json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/etc/hosts"}]});
        let container: Container = serde_json::from_value(value).expect("a container");
        assert_eq!(managed_file(&container, "/x".into(), "/etc/hosts"), None);
        assert!(managed_file(&container, "/x".into(), "/etc/resolv.conf").is_some());
    }
}
