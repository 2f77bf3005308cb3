//! Kernel settings that routing needs, and their way back.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    links::BRIDGE,
};

/// What is set for the whole network namespace, and must be set back.
///
/// A packet between two pods of one node comes in by the bridge and leaves by it: without the second line the host
/// would tell the pods to talk directly, and their answers would not pass the rules. The setting of `all` is ORed to
/// each interface's own, so the other interfaces keep theirs.
const HOST: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")];

/// What is remembered, in the order in which it is put back: to turn forwarding off lets the kernel accept redirects,
/// which the host may have forbidden.
const REMEMBERED: [&str; 3] =
    ["net/ipv4/ip_forward", "net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/all/send_redirects"];

/// Sets what this host needs; what it had before is remembered once, also over restarts.
pub fn prepare_host(run_dir: &Path) -> Result<()> {
    let path = memory(run_dir);
    if !path.exists() {
        let before: BTreeMap<&str, String> = REMEMBERED.iter().filter_map(|name| Some((*name, read(name)?))).collect();
        let bytes = serde_json::to_vec(&before).unwrap_or_default();
        fs::write(&path, bytes).map_err(Error::file("write", &path))?;
    }
    for (name, value) in HOST {
        set(name, value)?;
    }
    Ok(())
}

/// Puts back what `prepare_host` found.
pub fn restore_host(run_dir: &Path) -> Result<()> {
    let path = memory(run_dir);
    let Ok(bytes) = fs::read(&path) else { return Ok(()) };
    let before: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap_or_default();
    for name in REMEMBERED {
        if let Some(value) = before.get(name) {
            set(name, value)?;
        }
    }
    fs::remove_file(&path).map_err(Error::file("remove", &path))
}

/// The bridge: no redirects (see above), and any source may come by it as long as it has a route.
pub fn prepare_bridge() -> Result<()> {
    set(&format!("net/ipv4/conf/{BRIDGE}/send_redirects"), "0")?;
    loose(BRIDGE)
}

/// Lets an interface take packets whose answers would leave by another one: between nodes the two ways may differ.
pub fn loose(interface: &str) -> Result<()> {
    set(&format!("net/ipv4/conf/{interface}/rp_filter"), "2")
}

fn memory(run_dir: &Path) -> PathBuf {
    run_dir.join("network/sysctls.json")
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<()> {
    // Some hosts give a read-only /proc/sys with everything already set.
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(Error::file("set", &path))
}
