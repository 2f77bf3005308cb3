//! The shape that ARCHITECTURE.md promises: which crate may use which, which modules stay pure, how long a file may be.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which of our crates each crate may depend on. No arrow runs back.
const EDGES: &[(&str, &str, &[&str])] = &[
    ("cmd", "minik8s", &["api", "apiserver", "client", "controllers", "netdata", "node", "scheduler", "store"]),
    ("apiserver", "apiserver", &["api", "store"]),
    ("apiserver/api", "api", &[]),
    ("apiserver/client", "client", &["api"]),
    ("store", "store", &[]),
    ("scheduler", "scheduler", &["api", "client"]),
    ("controllers", "controllers", &["api", "client"]),
    ("node", "node", &["api", "client", "netdata"]),
    ("netdata", "netdata", &["api", "client"]),
    ("e2e", "e2e", &[]),
];

/// Cores: values in, values out. A directory stands for all files below it.
const PURE: &[&str] = &[
    "apiserver/api/src",
    "apiserver/src/admit.rs",
    "apiserver/src/allocate.rs",
    "apiserver/src/authorize.rs",
    "apiserver/src/encryption/envelope.rs",
    "apiserver/src/encryption/record.rs",
    "apiserver/src/filter.rs",
    "apiserver/src/keys.rs",
    "apiserver/src/negotiate.rs",
    "apiserver/src/options.rs",
    "apiserver/src/paths.rs",
    "apiserver/src/query.rs",
    "apiserver/src/route.rs",
    "controllers/src/claim.rs",
    "controllers/src/deployment",
    "controllers/src/endpoints",
    "controllers/src/garbage.rs",
    "controllers/src/graph.rs",
    "controllers/src/load_balancer.rs",
    "controllers/src/namespace.rs",
    "controllers/src/node",
    "controllers/src/plan.rs",
    "controllers/src/pod.rs",
    "controllers/src/queue.rs",
    "controllers/src/ranking.rs",
    "controllers/src/replicaset.rs",
    "controllers/src/selector.rs",
    "controllers/src/service_account.rs",
    "netdata/src/batch.rs",
    "netdata/src/cidr.rs",
    "netdata/src/compile.rs",
    "netdata/src/dns/answer.rs",
    "netdata/src/index.rs",
    "netdata/src/json.rs",
    "netdata/src/routes.rs",
    "netdata/src/ruleset.rs",
    "netdata/src/skeleton.rs",
    "netdata/src/text.rs",
    "node/src/image/reference.rs",
    "node/src/pod/plan.rs",
    "node/src/pod/qos.rs",
    "node/src/pod/recall.rs",
    "node/src/pod/status.rs",
    "node/src/probe/state.rs",
    "netdata/src/batch.rs",
    "netdata/src/cidr.rs",
    "netdata/src/compile.rs",
    "netdata/src/dns/answer.rs",
    "netdata/src/frontend.rs",
    "netdata/src/index.rs",
    "netdata/src/ips.rs",
    "netdata/src/json.rs",
    "netdata/src/json.rs",
    "netdata/src/routes.rs",
    "netdata/src/ruleset.rs",
    "netdata/src/skeleton.rs",
    "netdata/src/text.rs",
    "netdata/src/text.rs",
    "scheduler/src/cycle.rs",
    "scheduler/src/filter.rs",
    "scheduler/src/pod.rs",
    "scheduler/src/queue.rs",
    "scheduler/src/resources.rs",
    "scheduler/src/score.rs",
    "scheduler/src/snapshot.rs",
    "store/src/command.rs",
    "store/src/lease.rs",
    "store/src/log/frame.rs",
    "store/src/mvcc.rs",
    "e2e/tests/faults/check.rs",
    "e2e/tests/faults/history.rs",
    "e2e/tests/faults/report.rs",
    "e2e/tests/faults/schedule.rs",
    "store/src/types.rs",
];

/// What a core must not reach for. Tests beside it may.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "tokio::",
    "fs::",
    "Command::new",
    "clock::",
    "entropy::",
    "runtime::now",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::process",
    "std::env",
    "thread::",
    "rand::",
    "getrandom",
    "reqwest",
    "ring::rand",
];

/// Past this many lines without its tests, a file hides a second noun.
const LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let keep = |p: &PathBuf| !["target", ".git"].iter().any(|skip| p.ends_with(skip));
    paths
        .filter(keep)
        .filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "rs"))
        .flat_map(|p| sources(&p))
        .collect()
}

/// The part of a file that ships: all before its test module.
fn shipped(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.split("\n#[cfg(test)]\n").next().unwrap_or_default().to_owned()
}

#[test]
fn crates_use_only_what_they_may() {
    let ours: Vec<&str> = EDGES.iter().map(|(_, name, _)| *name).collect();
    for (folder, name, may) in EDGES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        // What only tests use is free: they look at the whole from outside.
        let dependencies =
            manifest.split("[dependencies]").nth(1).and_then(|d| d.split("\n[").next()).unwrap_or_default();
        for line in dependencies.lines() {
            let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(!ours.contains(&used) || may.contains(&used), "{name} must not use {used}");
        }
    }
}

#[test]
fn cores_have_no_hidden_inputs() {
    for place in PURE {
        for file in sources(&root().join(place)) {
            for (number, line) in shipped(&file).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                // `Operand::` is not `rand::`.
                let begins = |at| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let found = IMPURE.iter().find(|word| code.match_indices(**word).any(|(at, _)| begins(at)));
                assert!(
                    found.is_none(),
                    "{}:{}: {} in a pure module",
                    file.display(),
                    number + 1,
                    found.unwrap_or(&"")
                );
            }
        }
    }
}

#[test]
fn files_stay_small() {
    for file in sources(&root()) {
        let lines = shipped(&file).lines().count();
        assert!(lines <= LINES, "{}: {lines} lines, {LINES} at most", file.display());
    }
}
