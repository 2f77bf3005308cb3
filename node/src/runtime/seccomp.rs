//! The default system-call filter: what containers may call when their profile is RuntimeDefault.
//!
//! An allow list; everything else answers EPERM. What a capability is needed for anyway is allowed to
//! those who have that capability. The result is the OCI runtime specification's `linux.seccomp`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Harmless to everyone, whatever the kernel's version: names libseccomp does not know are skipped.
const ALWAYS: &str = include_str!("seccomp_names.txt");

/// What each capability opens.
const BY_CAPABILITY: &[(&str, &[&str])] = &[
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("CAP_SYSLOG", &["syslog"]),
];

/// The CLONE_NEW* bits: a process without CAP_SYS_ADMIN may fork and make threads, but no namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
const AF_VSOCK: u64 = 40;
const ENOSYS: u32 = 38;
/// Linux, Linux with the 32-bit name, and those with UNAME26, and "only asking".
const PERSONALITIES: [u64; 5] = [0, 8, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// The profile for a container with these capabilities.
pub fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let mut names: BTreeSet<&str> = ALWAYS.split_whitespace().collect();
    for (_, opened) in BY_CAPABILITY.iter().filter(|(capability, _)| capabilities.contains(*capability)) {
        names.extend(*opened);
    }
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    for value in PERSONALITIES {
        rules.push(rule("personality", 0, value, "SCMP_CMP_EQ"));
    }
    rules.push(rule("socket", 0, AF_VSOCK, "SCMP_CMP_NE"));
    if !capabilities.contains("CAP_SYS_ADMIN") {
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
        // Its flags stand in memory, where a filter cannot look; libraries fall back to clone on ENOSYS.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn rule(name: &str, index: usize, value: u64, op: &str) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{"index": index, "value": value, "valueTwo": 0, "op": op}]})
}

/// This machine's architecture and the 32-bit one it also runs.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value) -> BTreeSet<&str> {
        profile["syscalls"][0]["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
    }

    #[test]
    fn capabilities_open_what_they_are_needed_for() {
        let none = default_profile(&BTreeSet::new());
        let names = allowed(&none);
        assert!(names.contains("openat") && names.contains("capset") && names.contains("execve"));
        for closed in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "kexec_load",
            "init_module",
            "clone",
            "userfaultfd",
            "reboot",
        ] {
            assert!(!names.contains(closed), "{closed} is open to everyone");
        }
        let admin = default_profile(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()]));
        assert!(allowed(&admin).contains("mount"));
        assert!(none["syscalls"].as_array().unwrap().iter().any(|r| r["names"][0] == "clone3" && r["errnoRet"] == 38));
    }
}
