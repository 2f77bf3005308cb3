//! The server's machine is lost: a snapshot of it, restored into an empty directory, is the same cluster to everybody.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster,
    host::binary,
    wait::{seconds, wait},
};

fn snapshot(cluster: &Cluster, args: &[&str]) -> Result<Output> {
    let mut command: Command = cluster.m.command(binary()?.to_str().context("a path in UTF-8")?);
    Ok(command.arg("snapshot").args(args).env_remove("KUBECONFIG").output()?)
}

fn done(output: Output) -> Result<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {error}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

fn refused(output: Output, parts: &[&str]) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {error}", output.status);
    parts.iter().try_for_each(|part| {
        ensure!(error.contains(part), "no {part:?} in {error}");
        Ok(())
    })
}

#[test]
fn a_snapshot_is_the_cluster() -> Result<()> {
    let mut cluster = Cluster::start("snap", &["a"])?;
    let (data, file) = (cluster.path("m").display().to_string(), cluster.path("cluster.snapshot"));
    let name = file.display().to_string();
    cluster.kubectl(&["create", "configmap", "before", "--from-literal=k=v"])?;
    let token = cluster.kubectl(&["create", "token", "default"])?;
    let uid = cluster.kubectl(&["get", "configmap", "before", "-o", "jsonpath={.metadata.uid}"])?;

    let said = done(snapshot(&cluster, &["save", "--data-dir", &data, &name])?)?;
    ensure!(said.contains("keys") && said.contains(&name), "{said}");
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
    refused(snapshot(&cluster, &["save", "--data-dir", &data, &name])?, &[&name, "exists already"])?;
    let (secret, other) = (cluster.path("passphrase"), cluster.path("another"));
    fs::write(&secret, "correct horse battery\n")?;
    fs::write(&other, "incorrect horse battery\n")?;
    let (secret, other) = (secret.display().to_string(), other.display().to_string());
    let sealed = cluster.path("sealed").display().to_string();
    done(snapshot(&cluster, &["save", "--data-dir", &data, "--passphrase-file", &secret, &sealed])?)?;
    ensure!(
        !fs::read(&sealed)?.windows(14).any(|part| part == b"tls/ca.key\0\0\0\0"),
        "an encrypted archive shows its files"
    );
    refused(snapshot(&cluster, &["restore", "--data-dir", &data, &name])?, &["m/store", "empty --data-dir"])?;
    cluster.kubectl(&["create", "configmap", "after"])?;

    // All that is left of the machine is the snapshot.
    cluster.kill_server()?;
    fs::rename(cluster.path("m"), cluster.path("lost"))?;
    let mut half = fs::read(&file)?;
    half.truncate(half.len() / 2);
    fs::write(cluster.path("half"), half)?;
    let half = cluster.path("half").display().to_string();
    refused(snapshot(&cluster, &["restore", "--data-dir", &data, &half])?, &[&half, "not the whole of one"])?;
    refused(snapshot(&cluster, &["save", "--data-dir", &data, "x"])?, &["no server in --data-dir", &data])?;
    refused(snapshot(&cluster, &["restore", "--data-dir", &data, &sealed])?, &[&sealed, "--passphrase-file"])?;
    let wrong = ["restore", "--data-dir", &data, "--passphrase-file", &other, &sealed];
    refused(snapshot(&cluster, &wrong)?, &[&sealed, "passphrase is another one"])?;
    let said = done(snapshot(&cluster, &["restore", "--data-dir", &data, "--passphrase-file", &secret, &sealed])?)?;
    ensure!(said.contains("restored") && said.contains("minik8s server --data-dir"), "{said}");
    cluster.start_server()?;

    ensure!(cluster.kubectl(&["get", "configmap", "before", "-o", "jsonpath={.metadata.uid}"])? == uid);
    let names = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
    ensure!(!names.contains("configmap/after"), "{names}");
    // A token of before is still known: who may not list pods is told so, and not asked who it is.
    let url = format!("https://{}:6443/api/v1/namespaces/default/pods", cluster.m.address);
    let curl = format!("curl -sk -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {}' {url}", token.trim());
    ensure!(cluster.m.sh(&curl)?.trim() == "403");
    // The agent went on throughout, and takes work from the new server with the certificate that it has.
    cluster.kubectl(&["create", "deployment", "web", "--image=nginx:latest"])?;
    cluster.pods_ready("app=web", 1, seconds(60))?;
    Ok(())
}

/// A schedule survives restarts, and keeps as many snapshots as it is told.
#[test]
fn snapshots_are_taken_on_a_schedule() -> Result<()> {
    let cluster = Cluster::start("sched", &[])?;
    let data = cluster.path("other").display().to_string();
    let mut command: Command = cluster.m.command(binary()?.to_str().context("a path in UTF-8")?);
    let server = ["server", "--data-dir", &data, "--bind", "127.0.0.1:7443", "--snapshot-interval", "1s"];
    let mut child = command.args(server).args(["--snapshot-keep", "2"]).spawn()?;
    let taken = wait("snapshots on schedule, the first ones gone", seconds(30), || {
        let mut names: Vec<_> = match fs::read_dir(cluster.path("other/snapshots")) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect(),
            Err(_) => return Ok(None),
        };
        names.retain(|name| name.to_string_lossy().ends_with(".snapshot"));
        names.sort();
        Ok(Some(names).filter(|names| names.len() == 2))
    })
    .and_then(|first| {
        wait("newer ones in their place", seconds(30), || {
            let gone = first.iter().all(|name| !cluster.path("other/snapshots").join(name).exists());
            let listed = done(snapshot(&cluster, &["ls", "--data-dir", &data])?)?;
            ensure!(!listed.contains("damaged"), "{listed}");
            Ok((gone && listed.lines().all(|line| line.contains("revision"))).then_some(()))
        })
    });
    child.kill()?;
    child.wait()?;
    taken
}
