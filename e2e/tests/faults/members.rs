//! Servers come, go and come back, one thing at a time.

use std::{process::Output, time::Duration};

use anyhow::{Result, ensure};
use e2e::wait::{seconds, wait};

use super::{
    disk::Failing,
    history::{Name, Outcome, Request, Revision, Value},
    kube::{self, perform},
    servers::Servers,
};

const PATIENCE: Duration = Duration::from_secs(5);

fn ask(servers: &Servers, at: usize, request: Request) -> Result<Outcome> {
    let (client, address) = (servers.client.clone(), servers.all[at].host.address.clone());
    servers.inside.run(async move { perform(&client, &address, &request, PATIENCE).await })
}

/// Runs a test, and prints the ends of all logs if it fails.
fn on(mut servers: Servers, test: impl FnOnce(&mut Servers) -> Result<()>) -> Result<()> {
    test(&mut servers).inspect_err(|_| servers.dump())
}

fn make_namespace(servers: &Servers) -> Result<()> {
    let (client, address) = (servers.client.clone(), servers.all[0].host.address.clone());
    servers.inside.run(async move { kube::make_namespace(&client, &address).await })?
}

/// Creates an object through a server, as soon as that takes it.
fn write(servers: &Servers, at: usize, name: Name, value: Value) -> Result<Revision> {
    wait(&format!("write through s{at}"), seconds(20), || {
        match ask(servers, at, Request::Create { name, value })? {
            Outcome::Wrote(item) => Ok(Some(item.revision)),
            // Without an answer at first, and done all the same.
            Outcome::AlreadyExists => match ask(servers, at, Request::Get { name })? {
                Outcome::Got(Some(item)) => Ok((item.value == value).then_some(item.revision)),
                other => Err(anyhow::anyhow!("{other:?}")),
            },
            other => Err(anyhow::anyhow!("{other:?}")),
        }
    })
}

/// Every one of these servers has what was written, now.
fn have(servers: &Servers, at: &[usize], written: &[(Name, Value, Revision)]) -> Result<()> {
    for &at in at {
        for (name, value, revision) in written {
            match ask(servers, at, Request::Get { name: *name })? {
                Outcome::Got(Some(item)) if (item.value, item.revision) == (*value, *revision) => {}
                other => anyhow::bail!("s{at} says of k{name}, written at {revision}: {other:?}"),
            }
        }
    }
    Ok(())
}

#[test]
fn three_servers_are_one_cluster() -> Result<()> {
    on(Servers::start("three", 3)?, |servers| {
        make_namespace(servers)?;
        let mut written = Vec::new();
        for at in 0..3 {
            let (name, value) = (at as Name, 100 + at as Value);
            written.push((name, value, write(servers, at, name, value)?));
            have(servers, &[0, 1, 2], &written)?;
        }
        ensure!(written.is_sorted_by_key(|(.., revision)| *revision), "{written:?}");

        // Whoever is asked says whom the leader hears of.
        let heard = |servers: &Servers, at: usize, dead: usize| {
            let (client, address) = (servers.client.clone(), servers.all[at].host.address.clone());
            let heard = servers.inside.run(async move { kube::heard(&client, &address).await })??;
            let dead = &servers.all[dead].host.address;
            Ok((heard.len() == 2 && !heard.contains(dead)).then_some(()))
        };
        let leader = servers.leader()?;
        let (dead, left) = (servers.others(leader)[0], servers.others(leader)[1]);
        servers.all[dead].kill()?;
        for at in [leader, left] {
            wait(&format!("s{at} that knows of a dead server"), seconds(10), || heard(servers, at, dead))?;
        }
        servers.spawn(dead)?;
        servers.wait_members(3)?;

        let leader = servers.leader()?;
        let others = servers.others(leader);
        servers.all[leader].kill()?;
        for (&at, name) in others.iter().zip(10..) {
            written.push((name, 200, write(servers, at, name, 200)?));
            have(servers, &others, &written)?;
        }
        servers.spawn(leader)?;
        servers.wait_members(3)?;
        have(servers, &[0, 1, 2], &written)?;
        written.push((20, 300, write(servers, leader, 20, 300)?));
        have(servers, &[0, 1, 2], &written)?;

        // Asked to, a leader goes without anybody noticing more than a moment, and all of them can.
        for at in 0..3 {
            servers.all[at].ask_to_stop()?;
            servers.all[at].stopped()?;
            servers.spawn(at)?;
            servers.wait_members(3)?;
        }
        have(servers, &[0, 1, 2], &written)?;
        servers.all.iter_mut().try_for_each(|server| server.check_log())
    })
}

/// How often one server is asked at once for what another one has just been told.
const TIMES: Value = 100;

/// No server denies what another one has acknowledged, however far behind it is.
#[test]
fn a_refusal_is_of_its_time() -> Result<()> {
    on(Servers::start("refusals", 3)?, |servers| {
        make_namespace(servers)?;
        let leader = servers.leader()?;
        let other = servers.others(leader)[0];
        let wrote = |at, request: Request| match ask(servers, at, request.clone())? {
            Outcome::Wrote(_) | Outcome::Deleted(_) => Ok(()),
            wrong => Err(anyhow::anyhow!("s{at} answers {request:?} with {wrong:?}; s{leader} leads")),
        };
        for value in (0..TIMES).map(|time| time * 4) {
            wrote(leader, Request::Create { name: 0, value })?;
            wrote(other, Request::Update { name: 0, value: value + 1, at: None })?;
            wrote(leader, Request::Delete { name: 0, at: None })?;
            wrote(other, Request::Create { name: 0, value: value + 2 })?;
            wrote(leader, Request::Update { name: 0, value: value + 3, at: None })?;
            wrote(other, Request::Delete { name: 0, at: None })?;
        }
        Ok(())
    })
}

#[test]
fn a_server_with_an_empty_disk_takes_its_own_place() -> Result<()> {
    on(Servers::start("empty", 3)?, |servers| {
        make_namespace(servers)?;
        let mut written = vec![(0, 100, write(servers, 0, 0, 100)?)];
        // The first one, which made the cluster, can be lost like any other; and more than once.
        for (at, name) in [(0, 1), (2, 2), (0, 3)] {
            servers.all[at].kill()?;
            servers.all[at].disk.replace()?;
            let other = servers.others(at)[0];
            written.push((name, 200, write(servers, other, name, 200)?));
            servers.spawn(at)?;
            servers.wait_members(3)?;
            have(servers, &[0, 1, 2], &written)?;
            // From now on it is a voter that remembers: nothing depends on the one that it was copied from.
            servers.all[at].kill()?;
            servers.spawn(at)?;
            servers.wait_members(3)?;
            have(servers, &[at], &written)?;
        }
        servers.all.iter_mut().try_for_each(|server| server.check_log())
    })
}

/// It ended with one line that says what to look at.
fn refused(what: &str, output: &Output, parts: &[&str]) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = error.lines().filter(|line| line.starts_with("minik8s: ")).collect();
    ensure!(output.status.code() == Some(1) && said.len() == 1, "{what}: {} {error}", output.status);
    let named = parts.iter().any(|part| said[0].contains(part));
    ensure!(named, "{what}: none of {parts:?} in {}", said[0]);
    Ok(())
}

#[test]
fn a_server_that_was_removed_or_has_a_wrong_token_is_told_so() -> Result<()> {
    on(Servers::start_first("refused", 2)?, |servers| {
        let url = format!("https://{}:6443", servers.all[0].host.address);
        let token = servers.token().to_owned();
        let agents = servers.all[0].read("token")?;
        let (head, secret) = token.rsplit_once('.').unwrap_or_default();
        for (what, wrong) in [
            ("a secret that is not the cluster's", format!("{head}.00000000000000000000000000000000")),
            ("the token of agents", agents.trim().to_owned()),
            ("the CA of another cluster", format!("m8s1.{}.{secret}", "0".repeat(64))),
            ("no token at all", "nonsense".to_owned()),
        ] {
            let output = servers.all[1].run(&["--join", &url, "--token", &wrong])?;
            refused(what, &output, &["--token", "--join"])?;
        }
        // None of them has left a member behind, nor anything on the disk that is in the way.
        servers.wait_members(1)?;
        servers.join(1)?;

        let address = servers.all[1].host.address.clone();
        servers.all[0].command("remove")?.arg(&address).output()?;
        let what = "end of a server that was removed";
        let status = wait(what, seconds(20), || servers.all[1].ended())?;
        let said = servers.all[1].last_words();
        ensure!(
            status.code() == Some(1) && said.contains("removed") && said.contains("--data-dir"),
            "{status}: {said}"
        );
        servers.wait_members(1)?;
        // Nor does it come back by being started again; with an empty disk it is a new one.
        let output = servers.all[1].run(&["--join", &url, "--token", &token])?;
        refused(what, &output, &["removed"])?;
        servers.all[1].disk.replace()?;
        servers.join(1)
    })
}

#[test]
fn a_server_that_nobody_finds_is_told_so() -> Result<()> {
    on(Servers::start_first("unfound", 3)?, |servers| {
        let first = servers.all[0].host.address.clone();
        let (url, token) = (format!("https://{first}:6443"), servers.token().to_owned());
        let join = ["--join", &url, "--token", &token];
        for wrong in [&first[..], "127.0.0.1"] {
            let output = servers.all[1].run(&[&join[..], &["--advertise-address", wrong]].concat())?;
            refused(wrong, &output, &["--advertise-address"])?;
        }
        servers.wait_members(1)?;

        // An address of nobody: both sides say so, and a start with the right one is all it takes.
        servers.all[1].start(&[&join[..], &["--advertise-address", "10.77.0.99"]].concat())?;
        for (at, what) in [(1, "no other server has found this one"), (0, "another server cannot be reached")] {
            wait(&format!("a word of s{at}"), seconds(30), || Ok(servers.all[at].has_said(what)?.then_some(())))?;
        }
        servers.all[1].kill()?;
        servers.spawn(1)?;
        servers.wait_members(2)?;

        // The address of another server that is there is not taken from it.
        let second = servers.all[1].host.address.clone();
        servers.all[2].start(&[&join[..], &["--advertise-address", &second]].concat())?;
        wait("a refusal", seconds(10), || Ok(servers.all[2].has_said("which is there")?.then_some(())))?;
        servers.all[2].kill()?;
        servers.wait_members(2)
    })
}

/// It ends, and has everything when there is room again.
#[test]
fn a_disk_that_is_full_is_named() -> Result<()> {
    on(Servers::start("full", 1)?, |servers| {
        make_namespace(servers)?;
        let written = [(0, 100, write(servers, 0, 0, 100)?)];
        servers.all[0].disk.fill()?;
        let mut values = 1..;
        let status = wait("end of a server whose disk is full", seconds(20), || {
            // There is room for a while in the files that are there.
            let (client, address) = (servers.client.clone(), servers.all[0].host.address.clone());
            let value = values.next().unwrap_or_default();
            let _ = servers.inside.run(async move { kube::write_bulk(&client, &address, value).await })?;
            servers.all[0].ended()
        })?;
        servers.all[0].ended_of_its_disk(status)?;
        servers.all[0].disk.make_room()?;
        servers.spawn(0)?;
        servers.wait_members(1)?;
        have(servers, &[0], &written)?;
        servers.all[0].check_log()
    })
}

#[test]
fn a_disk_that_fails_is_named() -> Result<()> {
    for how in [Failing::Blocks, Failing::Whole] {
        on(Servers::start("broken", 1)?, |servers| {
            make_namespace(servers)?;
            servers.all[0].disk.fail(how)?;
            let outcome = ask(servers, 0, Request::Create { name: 1, value: 100 })?;
            ensure!(outcome == Outcome::Unknown, "{how:?}: a write to a broken disk was answered with {outcome:?}");
            let status = wait("end of a server whose disk fails", seconds(20), || servers.all[0].ended())?;
            servers.all[0].ended_of_its_disk(status)?;
            servers.all[0].check_log()
        })?;
    }
    Ok(())
}
