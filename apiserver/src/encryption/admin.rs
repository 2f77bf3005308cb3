//! What `minik8s encryption` asks a server for: how things are, and a rotation.

use std::{collections::BTreeMap, sync::PoisonError};

use api::status::Status;
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Vault,
    envelope::{self, Form},
    record::Phase,
    rotate,
};
use crate::{App, members::pass_on, negotiate::Form as Shown, objects::store_failure, paths, present};

/// As the server that leads sees it, as that one does the work.
pub async fn status(app: &App) -> Result<Response<Body>, Status> {
    if let Some(answer) = pass_on(app, (Method::GET, paths::ENCRYPTION), Bytes::new()).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    app.store.read_barrier().await.map_err(store_failure)?;
    Ok(present::value(StatusCode::OK, Shown::JSON, &app.store.describe()?))
}

/// Returns when a new key is in force; the rest is done behind that.
pub async fn rotate(app: &App) -> Result<Response<Body>, Status> {
    if let Some(answer) = pass_on(app, (Method::POST, paths::ROTATE), Bytes::new()).await? {
        return Ok(present::bytes(StatusCode::OK, "application/json", answer));
    }
    app.store.read_barrier().await.map_err(store_failure)?;
    app.store.rotate().await?;
    Ok(present::value(StatusCode::OK, Shown::JSON, &app.store.describe()?))
}

impl Vault {
    /// Counts by looking at how every value begins, so that no count can be wrong.
    fn describe(&self) -> Result<Value, Status> {
        let snapshot = self.store.snapshot();
        let ring = self.keyring(&snapshot)?;
        let own: Vec<String> = self.resources.iter().cloned().collect();
        let (phase, wanted) = match &ring.record.phase {
            Phase::Settled => ("Settled", &own),
            Phase::Rewriting { resources } => ("Rewriting", resources),
            Phase::Retiring { .. } => ("Retiring", &own),
        };
        let mut values: BTreeMap<envelope::KeyId, usize> = BTreeMap::new();
        for kv in rotate::registry(&snapshot) {
            match envelope::form(&kv.value) {
                Form::Sealed { id, .. } => *values.entry(id).or_default() += 1,
                Form::Plain | Form::Foreign => {}
            }
        }
        let key = |key: &super::record::DataKey| json!({"id": key.id, "created": key.created, "values": values.get(&key.id).unwrap_or(&0)});
        Ok(json!({
            "resources": own,
            "phase": phase,
            "primary": ring.record.primary,
            "keys": ring.record.keys.iter().map(key).collect::<Vec<_>>(),
            "left": rotate::wrong(&snapshot, &ring, wanted).count(),
            "trouble": *self.trouble.lock().unwrap_or_else(PoisonError::into_inner),
        }))
    }
}
