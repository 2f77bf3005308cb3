//! Wrong input gets one line that says what and what to do; nothing hangs.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster,
    host::{binary, sh},
    wait::{seconds, wait},
};

/// Runs the binary on the server's host to its end, which must come by itself.
fn run(cluster: &Cluster, args: &[&str]) -> Result<Output> {
    let mut command = cluster.m.command(binary()?.to_str().context("a path in UTF-8")?);
    let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let done = wait(&format!("end of {args:?}"), seconds(30), || Ok(child.try_wait()?));
    if done.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    done.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(output)
}

fn fails(cluster: &Cluster, args: &[&str], code: i32, parts: &[&str]) -> Result<()> {
    let output = run(cluster, args)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{args:?}: {} {error}", output.status);
    for part in parts {
        ensure!(error.contains(part), "{args:?}: no {part:?} in {error}");
    }
    // Usage errors show usage; everything else is one line.
    ensure!(code == 2 || error.lines().filter(|l| l.starts_with("minik8s:")).count() == 1, "{error}");
    Ok(())
}

#[test]
fn wrong_input_is_named() -> Result<()> {
    let cluster = Cluster::start("bad", &["a"])?;
    let token = fs::read_to_string(cluster.path("m/token"))?.trim().to_owned();
    let (head, secret) = token.rsplit_once('.').context("a token of three parts")?;
    let server = format!("https://{}:6443", cluster.m.address);
    let (data, run_dir) = (cluster.path("bad").display().to_string(), cluster.path("bad-run").display().to_string());
    let agent = |token: &str| {
        let dirs = ["--data-dir", &data, "--run-dir", &run_dir, "--node-name", "bad"];
        fails(&cluster, &[&["agent", "--join", &server, "--token", token], &dirs[..]].concat(), 1, &["token"])
    };
    agent(&format!("{head}.0000"))?;
    agent(&format!("m8s1.{}.{secret}", "0".repeat(64)))?;
    agent("nonsense")?;

    let second = cluster.path("second").display().to_string();
    fails(&cluster, &["server", "--data-dir", &second], 1, &["6443", "in use"])?;
    let (running, nowhere) = (cluster.path("m").display().to_string(), cluster.path("none").display().to_string());
    let recover = ["server", "recover", "--data-dir"];
    fails(&cluster, &[&recover[..], &[&running]].concat(), 1, &["--force"])?;
    fails(&cluster, &[&recover[..], &[&running, "--force"]].concat(), 1, &["runs: stop it"])?;
    fails(&cluster, &[&recover[..], &[&nowhere, "--force"]].concat(), 1, &["no server in", &nowhere])?;
    fails(&cluster, &["remove", "--data-dir", &running, "x"], 1, &["cannot remove x: ", "\"x\" is no server"])?;

    let file = cluster.path("file").display().to_string();
    fs::write(&file, "")?;
    fails(&cluster, &["server", "--data-dir", &format!("{file}/below"), "--bind", "127.0.0.1:7443"], 1, &[&file])?;
    fails(&cluster, &["server", "--no-such-flag"], 2, &["--no-such-flag"])?;
    fails(&cluster, &["agent", "--join", &server, "--token", &token, "--node-ip", "nonsense"], 2, &["--node-ip"])?;
    images(&cluster)
}

/// An image that does not exist, and one whose layer is not what its manifest says.
fn images(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["run", "missing", "--image=nowhere:latest"])?;
    cluster.wait("ErrImagePull", seconds(30), || {
        let listed = cluster.kubectl(&["get", "pod", "missing"])?;
        Ok((listed.contains("ErrImagePull") || listed.contains("ImagePullBackOff")).then_some(()))
    })?;
    let described = cluster.kubectl(&["describe", "pod", "missing"])?;
    ensure!(described.contains("nowhere:latest") && described.contains("not found"), "{described}");

    // Every blob of a copy of the nginx image that is gzip is damaged in the middle.
    let registry = cluster.path("registry/docker/registry/v2/blobs");
    let out = Command::new("sh")
        .args(["-c", &format!("find {} -name data -size +200k | head -20", registry.display())])
        .output()?;
    let blobs = String::from_utf8(out.stdout)?;
    ensure!(!blobs.is_empty(), "the registry holds layers");
    for blob in blobs.lines() {
        sh(&format!("dd if=/dev/zero of={blob} bs=1 seek=100000 count=64 conv=notrunc status=none"))?;
    }
    cluster.kubectl(&["run", "corrupt", "--image=nginx:latest"])?;
    cluster.wait("a word on the damage", seconds(30), || {
        let described = cluster.kubectl(&["describe", "pod", "corrupt"])?;
        Ok((described.contains("sha256:") && described.contains("Failed")).then_some(()))
    })?;
    cluster.kubectl(&["delete", "pod", "missing", "corrupt", "--timeout=30s"]).map(drop)
}
