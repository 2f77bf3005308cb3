//! A host is a network namespace; a wire joins them all to one bridge, which lives in a namespace of its own.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// The switch, and what hangs on it. Everything goes when this is dropped.
pub struct Network {
    name: String,
    hosts: Vec<String>,
}

impl Network {
    /// Makes a bridge in a namespace called after the test.
    pub fn new(name: &str) -> Result<Network> {
        let network = Network { name: format!("m8s-{name}-sw"), hosts: Vec::new() };
        let _ = delete(&network.name);
        sh(&format!(
            "ip netns add {0} && ip -n {0} link set lo up && ip -n {0} link add br0 type bridge && ip -n {0} link set br0 up",
            network.name
        ))?;
        Ok(network)
    }

    /// Adds a host at 10.77.`subnet`.`number`, one link away from every other in that subnet.
    pub fn host(&mut self, test: &str, name: &str, address: &str) -> Result<Host> {
        let host = Host { netns: format!("m8s-{test}-{name}"), address: address.to_owned() };
        let _ = delete(&host.netns);
        self.hosts.push(host.netns.clone());
        let port = format!("p-{name}");
        sh(&format!(
            "set -e; n={ns}; s={switch}
             ip netns add $n; ip -n $n link set lo up
             ip -n $s link add {port} type veth peer name eth0 netns $n
             ip -n $s link set {port} master br0 up
             ip -n $n addr add {address}/24 dev eth0; ip -n $n link set eth0 up
             ip -n $n route add default via 10.77.0.254",
            ns = host.netns,
            switch = self.name,
        ))?;
        Ok(host)
    }

    /// Pulls a host's plug, or puts it in again.
    pub fn link(&self, name: &str, state: &str) -> Result<()> {
        sh(&format!("ip -n {} link set p-{name} {state}", self.name))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for netns in self.hosts.iter().chain([&self.name]) {
            let _ = delete(netns);
        }
    }
}

/// Ends every process in a namespace, then removes it.
fn delete(netns: &str) -> Result<()> {
    sh(&format!(
        "for p in $(ip netns pids {netns} 2>/dev/null); do kill -KILL $p 2>/dev/null || true; done; ip netns del {netns} 2>/dev/null"
    ))
}

#[derive(Clone, Debug)]
pub struct Host {
    pub netns: String,
    pub address: String,
}

impl Host {
    /// A command inside the host. `nsenter`, as `ip netns exec` would hide the cgroups.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.netns)).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell line to its end, for its output.
    pub fn sh(&self, line: &str) -> Result<String> {
        text(self.command("sh").args(["-c", line]).output().context("run nsenter")?, line)
    }

    /// What `curl` gets, within two seconds.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.sh(&format!("curl -sS --fail -m 2 {url}"))
    }
}

pub fn sh(line: &str) -> Result<()> {
    text(Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().context("run sh")?, line).map(drop)
}

/// The standard output of a command that succeeded; its error output if it did not.
pub fn text(output: Output, what: &str) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    bail!("{what}: {}\n{}{}", output.status, out, String::from_utf8_lossy(&output.stderr))
}

/// The binary under test: `MINIK8S_BIN`, or what `cargo build` made last beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MINIK8S_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("find this test's own file")?;
    let found = me.ancestors().map(|dir| dir.join("minik8s")).find(|path| path.is_file());
    found.context("no minik8s beside this test: run `cargo build` first, or set MINIK8S_BIN")
}
