//! A container's OCI configuration, from values alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::machine::{HostDevice, Machine};
use super::seccomp;
use super::types::{ContainerSpec, Propagation, SandboxSpec, Seccomp, Security};
use super::user::User;
use crate::image::ImageConfig;
use crate::shim::{NAMESPACES, SHM, own_namespaces};

/// What a container may do unless told otherwise: the set every container engine gives.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// By number, as the kernel counts them in its masks.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything a configuration is made of.
pub struct Input<'a> {
    pub sandbox: &'a SandboxSpec,
    /// The pod's directory, where its namespaces are pinned.
    pub pod_dir: &'a Path,
    pub spec: &'a ContainerSpec,
    pub image: &'a ImageConfig,
    pub user: &'a User,
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    pub machine: &'a Machine,
    /// Empty unless the container is privileged.
    pub devices: &'a [HostDevice],
}

/// The `config.json` of the container, or why there cannot be one.
pub fn config(input: &Input) -> Result<Value, String> {
    let spec = input.spec;
    let security = &spec.security;
    let capabilities = capabilities(security, input.machine.cgroups.unified(), &input.machine.bounding)?;
    let args = arguments(spec, input.image);
    if args.is_empty() {
        return Err("no command specified".to_owned());
    }
    let cwd = working_dir(spec, input.image);
    if !cwd.is_absolute() {
        return Err(format!("working directory {} is not an absolute path", cwd.display()));
    }
    let mut process = json!({
        "terminal": spec.tty,
        "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.additional},
        "args": args,
        "env": environment(spec, input.image, &input.sandbox.hostname),
        "cwd": cwd,
        // Nothing inheritable: a program with file capabilities must not gain what the container lacks.
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    });
    if security.no_new_privs {
        // Only when true: libcontainer takes its mere presence for a yes where filters are concerned.
        process["noNewPrivileges"] = json!(true);
    }
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": input.cgroup,
        "resources": resources(input),
        "rootfsPropagation": if spec.mounts.iter().any(|m| m.propagation == Propagation::Bidirectional) { "shared" } else { "slave" },
    });
    if !security.privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED_PATHS);
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
    }
    if input.machine.seccomp && !security.privileged && security.seccomp == Seccomp::RuntimeDefault {
        linux["seccomp"] = seccomp::default_profile(&capabilities);
    }
    if !input.devices.is_empty() {
        linux["devices"] = input.devices.iter().map(device).collect();
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": input.rootfs, "readonly": security.read_only_rootfs},
        "process": process,
        "mounts": mounts(input)?,
        "linux": linux,
    }))
}

/// The OCI process of something exec'd in a container with this configuration.
pub fn exec_process(config: &Value, command: &[String], env: &[(String, String)], terminal: bool) -> Value {
    let mut process = config["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(terminal);
    let mut merged: Vec<String> =
        process["env"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if terminal {
        set(&mut merged, "TERM", "xterm");
    }
    for (name, value) in env {
        set(&mut merged, name, value);
    }
    process["env"] = json!(merged);
    let no_new_privs = process["noNewPrivileges"] == json!(true);
    if config["linux"].get("seccomp").is_some() && !no_new_privs {
        // The filter needs a capability to be installed; the executor drops it again.
        let own: BTreeSet<String> = process["capabilities"]["bounding"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let more = json!(crate::shim::to_install_filter(&own));
        process["minik8s-capabilities"] = json!(own);
        process["capabilities"] = json!({"bounding": more, "effective": more, "permitted": more});
    }
    process
}

/// The entrypoint rules: `command` replaces the image's entrypoint and with it its arguments.
pub fn arguments(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    let command = if spec.command.is_empty() { &image.entrypoint } else { &spec.command };
    let args = if !spec.args.is_empty() {
        spec.args.as_slice()
    } else if spec.command.is_empty() {
        image.cmd.as_slice()
    } else {
        &[]
    };
    command.iter().chain(args).cloned().collect()
}

pub fn working_dir(spec: &ContainerSpec, image: &ImageConfig) -> PathBuf {
    let image_dir = || Some(PathBuf::from(&image.working_dir)).filter(|d| !d.as_os_str().is_empty());
    spec.working_dir.clone().or_else(image_dir).unwrap_or_else(|| PathBuf::from("/"))
}

fn environment(spec: &ContainerSpec, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut env = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={hostname}")];
    if spec.tty {
        env.push("TERM=xterm".to_owned());
    }
    for (name, value) in image.env.iter().filter_map(|e| e.split_once('=')) {
        set(&mut env, name, value);
    }
    for (name, value) in &spec.env {
        set(&mut env, name, value);
    }
    env
}

fn set(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env.iter_mut().find(|e| e.split('=').next() == Some(name)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

fn capabilities(security: &Security, unified: bool, bounding: &BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    let normal = |name: &String| -> Result<String, String> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") };
        if full == "ALL" || ALL_CAPABILITIES.contains(&full.as_str()) {
            Ok(full)
        } else {
            Err(format!("unknown capability \"{name}\""))
        }
    };
    let add: Vec<String> = security.capabilities_add.iter().map(normal).collect::<Result<_, _>>()?;
    let drop: Vec<String> = security.capabilities_drop.iter().map(normal).collect::<Result<_, _>>()?;
    let every = security.privileged || add.iter().any(|c| c == "ALL");
    let base: &[&str] = if every { &ALL_CAPABILITIES } else { &DEFAULT_CAPABILITIES };
    let mut set: BTreeSet<String> = base.iter().map(|c| (*c).to_owned()).collect();
    // Version 2 has no device list without eBPF: a container that can make device nodes could open the node's disks.
    if unified && !every {
        set.remove("CAP_MKNOD");
    }
    if drop.iter().any(|c| c == "ALL") && !security.privileged {
        set.clear();
    }
    if !security.privileged {
        set.retain(|c| !drop.contains(c));
    }
    set.extend(add.into_iter().filter(|c| c != "ALL"));
    set.retain(|c| bounding.contains(c));
    Ok(set)
}

fn namespaces(input: &Input) -> Value {
    let mut out = vec![json!({"type": "mount"})];
    for (file, _) in own_namespaces(input.sandbox) {
        let kind = if file == "net" { "network" } else { file };
        out.push(json!({"type": kind, "path": input.pod_dir.join(NAMESPACES).join(file)}));
    }
    if !input.sandbox.host_pid {
        out.push(if input.sandbox.share_process_namespace {
            json!({"type": "pid", "path": input.pod_dir.join(NAMESPACES).join("pid")})
        } else {
            json!({"type": "pid"})
        });
    }
    if input.machine.cgroups.unified() && !input.spec.security.privileged {
        out.push(json!({"type": "cgroup"}));
    }
    Value::Array(out)
}

fn resources(input: &Input) -> Value {
    let r = &input.spec.resources;
    let mut out = json!({});
    if let Some(limit) = r.memory_limit.filter(|_| input.machine.cgroups.supports("memory")) {
        out["memory"] = json!({"limit": limit});
    }
    if input.machine.cgroups.supports("cpu") && (r.cpu_shares.is_some() || r.cpu_quota.is_some()) {
        let mut cpu = json!({});
        if let Some(shares) = r.cpu_shares {
            cpu["shares"] = json!(shares);
        }
        if let Some(quota) = r.cpu_quota {
            cpu["quota"] = json!(quota);
            cpu["period"] = json!(r.cpu_period.unwrap_or(100_000));
        }
        out["cpu"] = cpu;
    }
    if let Some(limit) = r.pids_limit.filter(|_| input.machine.cgroups.supports("pids")) {
        out["pids"] = json!({"limit": limit});
    }
    if input.machine.cgroups.supports("devices") {
        out["devices"] = json!([{"allow": input.spec.security.privileged, "access": "rwm"}]);
    }
    out
}

fn mounts(input: &Input) -> Result<Value, String> {
    let privileged = input.spec.security.privileged;
    let sys =
        if privileged { json!(["nosuid", "noexec", "nodev"]) } else { json!(["nosuid", "noexec", "nodev", "ro"]) };
    let shm = if input.sandbox.host_ipc { PathBuf::from("/dev/shm") } else { input.pod_dir.join(SHM) };
    let mut out = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": sys}),
        json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]}),
    ];
    cgroup_mounts(input, &mut out);
    for mount in &input.spec.mounts {
        if !mount.container_path.is_absolute()
            || mount.container_path.components().any(|c| c == std::path::Component::ParentDir)
        {
            return Err(format!("mount path {} is not absolute and free of \"..\"", mount.container_path.display()));
        }
        let propagation = match mount.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        out.push(json!({"destination": mount.container_path, "type": "bind", "source": mount.host_path,
            "options": ["rbind", propagation, access]}));
    }
    Ok(Value::Array(out))
}

/// Version 1's hierarchies are bound one by one: libcontainer's own mount of them ignores `ro`, and a container that
/// may write there raises its own limits.
fn cgroup_mounts(input: &Input, out: &mut Vec<Value>) {
    let access = if input.spec.security.privileged { "rw" } else { "ro" };
    if input.machine.cgroups.unified() {
        out.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", access]}));
        return;
    }
    out.push(json!({"destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "mode=755", "size=64k"]}));
    for hierarchy in input.machine.cgroups.v1() {
        // What programs read to learn their limits; the others are nobody's business in a container.
        let wanted = |c: &String| matches!(c.as_str(), "cpu" | "cpuacct" | "cpuset" | "memory" | "pids");
        let Some(name) = hierarchy.mount.file_name().filter(|_| hierarchy.controllers.iter().any(wanted)) else {
            continue;
        };
        out.push(json!({"destination": Path::new("/sys/fs/cgroup").join(name), "type": "bind",
            "source": hierarchy.dir(input.cgroup), "options": ["bind", "nosuid", "noexec", "nodev", access]}));
    }
}

fn device(d: &HostDevice) -> Value {
    json!({"path": d.path, "type": d.kind.to_string(), "major": d.major, "minor": d.minor, "fileMode": d.mode & 0o777, "uid": 0, "gid": 0})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every() -> BTreeSet<String> {
        ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn commands_follow_the_entrypoint_rules() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() };
        for (command, args, want) in [
            (vec![], vec![], vec!["e", "c"]),
            (vec!["x"], vec![], vec!["x"]),
            (vec![], vec!["y"], vec!["e", "y"]),
            (vec!["x"], vec!["y"], vec!["x", "y"]),
        ] {
            let own = |v: Vec<&str>| v.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let spec = ContainerSpec { command: own(command), args: own(args), ..Default::default() };
            assert_eq!(arguments(&spec, &image), want);
        }
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let with = |add: &[&str], drop: &[&str]| {
            let own = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect();
            capabilities(
                &Security { capabilities_add: own(add), capabilities_drop: own(drop), ..Default::default() },
                false,
                &every(),
            )
        };
        assert_eq!(with(&[], &[]).unwrap().len(), DEFAULT_CAPABILITIES.len());
        assert_eq!(with(&["NET_ADMIN"], &["ALL"]).unwrap(), BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
        assert!(!with(&[], &["net_raw"]).unwrap().contains("CAP_NET_RAW"));
        assert_eq!(with(&["ALL"], &[]).unwrap().len(), ALL_CAPABILITIES.len());
        assert!(with(&["NO_SUCH"], &[]).is_err());
        let privileged = Security { privileged: true, ..Default::default() };
        assert_eq!(capabilities(&privileged, false, &every()).unwrap().len(), ALL_CAPABILITIES.len());
        let limited = BTreeSet::from(["CAP_CHOWN".to_owned()]);
        assert_eq!(capabilities(&privileged, false, &limited).unwrap(), limited);
    }

    #[test]
    fn the_environment_is_the_image_s_then_the_pod_s() {
        let image = ImageConfig { env: vec!["PATH=/x".into(), "A=1".into(), "B=2".into()], ..Default::default() };
        let spec =
            ContainerSpec { env: vec![("A".into(), "3=4".into()), ("C".into(), String::new())], ..Default::default() };
        assert_eq!(environment(&spec, &image, "h"), ["PATH=/x", "HOSTNAME=h", "A=3=4", "B=2", "C="]);
    }

    #[test]
    fn an_exec_installs_the_filter_with_what_it_then_gives_up() {
        let config = json!({
            "process": {"env": ["A=1"], "cwd": "/", "user": {"uid": 7}, "capabilities": {"bounding": ["CAP_CHOWN"]}},
            "linux": {"seccomp": {}},
        });
        let got = exec_process(&config, &["ls".to_owned()], &[("A".to_owned(), "2".to_owned())], false);
        assert_eq!(got["user"]["uid"], 7);
        assert_eq!(got["env"], json!(["A=2"]));
        assert_eq!(got["minik8s-capabilities"], json!(["CAP_CHOWN"]));
        assert_eq!(got["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_SETPCAP", "CAP_SYS_ADMIN"]));
    }
}
