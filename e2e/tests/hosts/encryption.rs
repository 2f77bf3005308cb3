//! What somebody finds who has the server's store and not its keys.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster,
    host::{binary, text},
    wait::seconds,
};

const SECRET: &str = "the-hidden--marker";
/// The same as clients get it, and as it would be stored.
const ENCODED: &str = "dGhlLWhpZGRlbi0tbWFya2Vy";
const CONTROL: &str = "the-visible-marker";

fn encryption(cluster: &Cluster, action: &str) -> Result<String> {
    let data = cluster.path("m").display().to_string();
    let mut command = cluster.m.command(binary()?.to_str().context("a path in UTF-8")?);
    text(command.args(["encryption", action, "--data-dir", &data]).output()?, action)
}

/// Files of the server's data directory that one of some texts is in.
fn files_with(cluster: &Cluster, texts: &[&str]) -> Result<String> {
    let data = cluster.path("m").display().to_string();
    cluster.m.sh(&format!("grep -rlaF -e {} {data} || test $? = 1", texts.join(" -e ")))
}

/// Nothing of the secret is in the store, nor beside it.
fn hidden(cluster: &Cluster) -> Result<()> {
    let found = files_with(cluster, &[SECRET, ENCODED])?;
    ensure!(found.is_empty(), "the secret is in {found}");
    Ok(())
}

#[test]
fn secrets_are_nowhere_on_the_disk() -> Result<()> {
    let mut cluster = Cluster::start("enc", &[])?;
    let value = |cluster: &Cluster| cluster.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.k}"]);
    let literal = format!("--from-literal=k={SECRET}");
    cluster.kubectl(&["create", "secret", "generic", "s", &literal])?;
    cluster.kubectl(&["create", "configmap", "m", &format!("--from-literal=k={CONTROL}")])?;
    for i in 0..50 {
        cluster.kubectl(&["create", "secret", "generic", &format!("s{i}"), &literal])?;
    }
    ensure!(!files_with(&cluster, &[CONTROL])?.is_empty(), "what is not encrypted is found");
    hidden(&cluster)?;

    // The server dies while it writes everything again.
    let said = encryption(&cluster, "rotate")?;
    ensure!(said.contains("key 2: in use"), "{said}");
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait("everything is written again", seconds(30), || {
        let said = encryption(&cluster, "status")?;
        Ok((said.contains("key 2: in use") && said.contains("everything is written again")).then_some(()))
    })?;
    ensure!(value(&cluster)? == ENCODED);
    hidden(&cluster)?;

    // Without its key file it says so, and makes no other one.
    cluster.stop_server()?;
    let (file, aside) = (cluster.path("m/tls/encryption.key"), cluster.path("aside"));
    fs::rename(&file, &aside)?;
    let mut command = cluster.m.command(binary()?.to_str().context("a path in UTF-8")?);
    let data = cluster.path("m").display().to_string();
    let output = command.args(["server", "--data-dir", &data]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && error.contains("tls/encryption.key is missing"), "{error}");
    ensure!(!file.exists());
    fs::rename(&aside, &file)?;
    cluster.start_server()?;
    ensure!(value(&cluster)? == ENCODED);
    Ok(())
}
