//! `minik8s encryption`: the keys by which the running server encrypts what it stores.

use anyhow::{Context, Result};
use apiserver::paths;
use reqwest::Method;
use serde_json::Value;

use crate::{ask::Running, flags::EncryptionAction};

pub async fn run(action: EncryptionAction) -> Result<()> {
    let answer = match action {
        EncryptionAction::Status(server) => {
            Running::find(server)?.ask(Method::GET, paths::ENCRYPTION, "see how the store is encrypted").await?
        }
        EncryptionAction::Rotate(server) => {
            Running::find(server)?.ask(Method::POST, paths::ROTATE, "change the key").await?
        }
    };
    let status: Value = serde_json::from_slice(&answer).context("read the server's answer")?;
    print!("{}", describe(&status));
    Ok(())
}

/// The status, for people.
fn describe(status: &Value) -> String {
    let list = |name: &str| status[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let resources: Vec<&str> = list("resources").iter().filter_map(Value::as_str).collect();
    let resources = if resources.is_empty() { "nothing".to_owned() } else { resources.join(", ") };
    let mut out = format!("encrypted: {resources}\n");
    for key in list("keys") {
        let place = if key["id"] == status["primary"] { "in use" } else { "replaced" };
        let created = key["created"].as_str().unwrap_or_default();
        out += &format!("key {}: {place}, made {created}, {} values\n", key["id"], key["values"]);
    }
    let left = &status["left"];
    out += &match status["phase"].as_str() {
        Some("Rewriting") => format!("rotation: {left} values are still to be written again\n"),
        Some("Retiring") => {
            "rotation: everything is written again; the replaced keys go once no watch or list can need them\n"
                .to_owned()
        }
        _ if left == 0 => "rotation: none under way\n".to_owned(),
        _ => format!(
            "rotation: none under way; {left} values would be written otherwise now: `minik8s encryption rotate`\n"
        ),
    };
    if let Some(trouble) = status["trouble"].as_str() {
        out += &format!("trouble: {trouble}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_read() {
        let key = |id: u64, values: u64| json!({"id": id, "created": "2030-01-01T00:00:00Z", "values": values});
        let settled = json!({"resources": ["configmaps", "secrets"], "phase": "Settled", "primary": 1, "keys": [key(1, 3)], "left": 0, "trouble": null});
        assert_eq!(
            describe(&settled),
            "encrypted: configmaps, secrets\nkey 1: in use, made 2030-01-01T00:00:00Z, 3 values\nrotation: none under way\n"
        );
        let mut plain = settled.clone();
        (plain["left"], plain["resources"]) = (5.into(), json!([]));
        let shown = describe(&plain);
        assert!(shown.starts_with("encrypted: nothing\n") && shown.contains("5 values would"), "{shown}");
        let rewriting = json!({"resources": ["secrets"], "phase": "Rewriting", "primary": 2, "keys": [key(1, 7), key(2, 3)], "left": 7, "trouble": "it is stuck"});
        let shown = describe(&rewriting);
        for part in ["key 1: replaced", "7 values\n", "key 2: in use", "7 values are still", "trouble: it is stuck\n"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let mut retiring = rewriting.clone();
        (retiring["phase"], retiring["left"]) = ("Retiring".into(), 0.into());
        assert!(describe(&retiring).contains("everything is written again"));
    }
}
