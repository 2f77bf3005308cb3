//! `minik8s status` and `minik8s remove`: the cluster's servers.

use anyhow::{Context, Result};
use apiserver::paths;
use reqwest::Method;
use serde_json::Value;

use crate::{ask::Running, flags::RunningServer};

async fn ask(server: RunningServer) -> Result<Value> {
    let answer = Running::find(server)?.ask(Method::GET, paths::STATUS, "its status").await?;
    serde_json::from_slice(&answer).context("read the server's status")
}

/// Prints everything there is to know.
pub async fn status_as_json(server: RunningServer) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&ask(server).await?)?);
    Ok(())
}

pub async fn status(server: RunningServer) -> Result<()> {
    let status = ask(server).await?;
    print!("{}", table(&status));
    if status["leader"].as_str().is_none_or(|leader| leader.trim_matches('0').is_empty()) {
        println!("no server leads: a majority of those with a vote must be there");
    }
    if status["alarms"].as_array().is_some_and(|alarms| !alarms.is_empty()) {
        println!("the store is full ({} of {} bytes): it takes deletes only", status["bytes"], status["quotaBytes"]);
    }
    Ok(())
}

pub async fn remove(server: RunningServer, which: String) -> Result<()> {
    let server = Running::find(server)?;
    server.ask(Method::DELETE, &paths::server(&which), &format!("the removal of {which}")).await?;
    println!("{which} is no server of the cluster any more");
    Ok(())
}

/// A line for each server.
fn table(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut rows = vec![["NAME", "ADDRESS", "ROLE", "HEARD", "ID"].map(str::to_owned)];
    for member in status["members"].as_array().into_iter().flatten() {
        let role = match (member["id"] == status["leader"], member["voter"] == true) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let heard = match member["heard"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            // Only the leader knows.
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
}
