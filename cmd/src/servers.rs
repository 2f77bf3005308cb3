//! `minik8s status` and `minik8s remove`: the cluster's servers.

use std::path::Path;

use anyhow::{Context, Result};
use apiserver::paths;
use reqwest::Method;
use serde_json::Value;

use crate::{ask::Running, flags::RunningServer, join};

async fn ask(server: RunningServer) -> Result<Value> {
    let answer = Running::find(server)?.ask(Method::GET, paths::STATUS, "see the servers").await?;
    serde_json::from_slice(&answer).context("cannot see the servers")
}

/// Prints everything there is to know.
pub async fn status_as_json(server: RunningServer) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&ask(server).await?)?);
    Ok(())
}

pub async fn status(server: RunningServer) -> Result<()> {
    let data_dir = server.data.data_dir.clone();
    let status = ask(server).await?;
    print!("{}{}", table(&status), remarks(&status, &data_dir));
    Ok(())
}

pub async fn remove(server: RunningServer, which: String) -> Result<()> {
    let server = Running::find(server)?;
    server.ask(Method::DELETE, &paths::server(&which), &format!("remove {which}")).await?;
    println!("{which} is no server of the cluster any more");
    Ok(())
}

fn members(status: &Value) -> impl Iterator<Item = &Value> {
    status["members"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

/// A line for each thing that is not as it should be, and one that says how there can be more servers.
fn remarks(status: &Value, data_dir: &Path) -> String {
    let mut lines = Vec::new();
    if status["leader"].as_str().is_none_or(|leader| leader.trim_matches('0').is_empty()) {
        lines.push("no server leads: a majority of those with a vote must be there".to_owned());
    } else if members(status).any(|member| member["heard"].is_null()) {
        lines.push("whom the leader hears of is not known, as it does not say so".to_owned());
    }
    for member in members(status).filter(|member| member["heard"] == false) {
        lines.push(format!(
            "{} is not heard of: if it runs, the others cannot reach it at {}, which its --advertise-address and --bind say",
            text(&member["name"]),
            text(&member["url"])
        ));
    }
    if status["alarms"].as_array().is_some_and(|alarms| !alarms.is_empty()) {
        let (bytes, quota) = (&status["bytes"], &status["quotaBytes"]);
        lines.push(format!("the store is full ({bytes} of {quota} bytes): it takes deletes only"));
    }
    let voters = members(status).filter(|member| member["voter"] == true).count();
    if voters > 0 && voters % 2 == 0 {
        let few = if voters == 2 { "none".to_owned() } else { (voters / 2 - 1).to_string() };
        let (fewer, may) = (voters - 1, voters / 2);
        lines
            .push(format!("{voters} voters: {few} may fail, no more than of {fewer}; with a further server {may} may"));
    }
    let leader = members(status).find(|member| member["id"] == status["leader"]);
    if let Some(url) = leader.and_then(|leader| leader["url"].as_str()) {
        lines.push(format!("a further server:  {}", join::command(url, data_dir)));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// A line for each server.
fn table(status: &Value) -> String {
    let mut rows = vec![["NAME", "ADDRESS", "ROLE", "HEARD", "ID"].map(str::to_owned)];
    for member in members(status) {
        let role = match (member["id"] == status["leader"], member["voter"] == true) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let heard = match member["heard"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        rows.push([
            text(&member["name"]),
            text(&member["url"]),
            role.to_owned(),
            heard.to_owned(),
            text(&member["id"]),
        ]);
    }
    let mut widths = [0; 5];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.len()));
    }
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_for_each_server() {
        let status = json!({"leader": "01", "members": [
            {"id": "01", "name": "a", "url": "https://10.0.0.1:6443", "voter": true, "heard": true},
            {"id": "0f", "name": null, "url": null, "voter": false, "heard": false},
        ]});
        assert_eq!(
            table(&status),
            "NAME   ADDRESS                 ROLE      HEARD   ID\n\
             a      https://10.0.0.1:6443   leader    yes     01\n\
             ?      ?                       learner   no      0f\n"
        );
    }

    #[test]
    fn what_is_remarkable() {
        let member = |id: u64, voter: bool, heard: Value| json!({"id": id.to_string(), "name": format!("s{id}"), "url": format!("https://h{id}:1"), "voter": voter, "heard": heard});
        let shown = |leader: &str, members: Value| {
            remarks(&json!({"leader": leader, "members": members, "alarms": []}), Path::new("/d"))
        };
        let more =
            "a further server:  minik8s server --join https://h1:1 --token TOKEN, which is in /d/server-token here\n";
        let one = member(1, true, true.into());
        assert_eq!(shown("1", json!([one])), more);
        let two = shown("1", json!([one, member(2, true, false.into())]));
        for part in [
            "s2 is not heard of",
            "https://h2:1",
            "2 voters: none may fail, no more than of 1; with a further server 1 may\n",
            more,
        ] {
            assert!(two.contains(part), "{part}: {two}");
        }
        let unknown = shown("1", json!([member(1, true, Value::Null), member(2, false, Value::Null)]));
        assert!(
            unknown.starts_with("whom the leader hears of is not known") && !unknown.contains("voters"),
            "{unknown}"
        );
        let four: Vec<Value> = (1..5).map(|id| member(id, true, true.into())).collect();
        assert!(
            shown("1", json!(four)).contains("4 voters: 1 may fail, no more than of 3; with a further server 2 may\n")
        );
        assert!(shown("00", json!([one])).starts_with("no server leads"));
    }
}
