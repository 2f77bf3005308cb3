//! What the node asks of the runtime and what it gets back: plain values, no behaviour.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::Registries;

/// Where the runtime keeps what it owns and how it starts shims.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Also names this node's cgroup, `/minik8s/<node-name>`.
    pub node_name: String,
    pub registries: Registries,
    /// The program started as `<program> shim --dir ..`; `None` is this process's own executable.
    pub shim_exe: Option<PathBuf>,
}

/// The pod's quality of service class; it decides the parent cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Qos {
    Guaranteed,
    Burstable,
    #[default]
    BestEffort,
}

impl Qos {
    /// The cgroup below the node's; Guaranteed pods stand directly in it.
    pub fn cgroup(self) -> &'static str {
        match self {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        }
    }
}

/// What a pod or a container may use. `None` leaves the kernel's default (no limit).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1's `cpu.shares` (2..=262144); turned into a weight on v2.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each `cpu_period`.
    pub cpu_quota: Option<i64>,
    /// Microseconds; 100000 when a quota is set without it.
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    pub pids_limit: Option<i64>,
}

/// A pod's surroundings: what its containers share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    /// Applied inside the pod's network and IPC namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The directory that holds this pod's container logs; created with the sandbox.
    pub log_dir: PathBuf,
    pub qos: Qos,
    /// The whole pod's limits, set on the pod's cgroup.
    pub resources: Resources,
}

/// A pod that has (or had) a shim on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub uid: String,
    pub spec: SandboxSpec,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    pub state: SandboxState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// The shim answers.
    Ready,
    /// The shim is gone or never came up: nothing can be done with it but `remove_sandbox`.
    Dead,
}

/// How a mount made on one side is seen on the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

/// One file or directory of the node shown inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub host_path: PathBuf,
    /// Absolute, inside the container; missing directories or the file are created.
    pub container_path: PathBuf,
    pub read_only: bool,
    pub propagation: Propagation,
}

/// Who the container's processes run as. What is `None` comes from the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSpec {
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    /// Added to the groups the image's /etc/group gives that user.
    pub supplemental_groups: Vec<u32>,
    /// Refuse to create a container whose processes would run as uid 0.
    pub must_not_be_root: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    Unconfined,
}

/// The security context, as far as the runtime enforces it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub privileged: bool,
    /// Names with or without `CAP_`; `ALL` means every capability.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub read_only_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    /// Show /proc without masked and read-only paths (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

/// One container of a pod, everything resolved but what only the image knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    pub pod_uid: String,
    pub name: String,
    /// The restart count; with the name it is the container's identity within the pod.
    pub attempt: u32,
    /// The id of an image in the store (`Image::id`).
    pub image: String,
    /// The pod's `command`, expanded; empty takes the image's entrypoint.
    pub command: Vec<String>,
    /// The pod's `args`, expanded; empty takes the image's arguments unless `command` is given.
    pub args: Vec<String>,
    /// Set over the image's own environment, in order.
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    /// In the order they are made; /etc/hosts, /etc/hostname and the termination log are ordinary file mounts.
    pub mounts: Vec<Mount>,
    pub user: UserSpec,
    pub security: Security,
    pub resources: Resources,
    /// -1000..=1000; what this machine refuses is left as it is, with one warning.
    pub oom_score_adj: Option<i32>,
    pub tty: bool,
    pub stdin: bool,
    /// Close stdin for good when the first attached client leaves.
    pub stdin_once: bool,
    /// The CRI-format log file; its directory must exist (`SandboxSpec::log_dir` does).
    pub log_path: PathBuf,
}

/// A container's identity on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId {
    pub pod_uid: String,
    pub name: String,
    pub attempt: u32,
}

impl ContainerId {
    /// The part of a status's `containerID` behind `minik8s://`: 64 hexadecimal digits, the same for the same container.
    pub fn hex(&self) -> String {
        use sha2::{Digest, Sha256};
        crate::image::hex(&Sha256::digest(self.to_string().as_bytes()))
    }

    /// Its name within the pod's directories and cgroup.
    pub fn local(&self) -> String {
        format!("{}-{}", self.name, self.attempt)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.pod_uid, self.name, self.attempt)
    }
}

/// How a container's first process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + the signal's number when a signal ended it.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    pub id: ContainerId,
    pub name: String,
    pub attempt: u32,
    /// On the node; `None` once exited.
    pub pid: Option<i32>,
    /// The image's id.
    pub image: String,
    pub state: RunState,
}

/// Something happened to a pod: look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    pub pod_uid: String,
    pub what: RuntimeChange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeChange {
    Exited { name: String, attempt: u32 },
    ShimLost,
}

/// A process to start in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    /// Without it, nothing reads the process's output: it goes to /dev/null.
    pub stdout: bool,
    pub stderr: bool,
    /// Set over the container's environment.
    pub env: Vec<(String, String)>,
}

/// How a process ended, as a shell sees it: 128 + signal when a signal ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    pub code: i32,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub status: ExitStatus,
    /// At most `EXEC_SYNC_OUTPUT` bytes of standard output, then of standard error.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}
