//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and strategic merge patch.

use json_patch::{Patch, PatchOperation, jsonptr::resolve::Resolve};
use serde_json::Value;

use crate::schema::depth;

mod strategic;

/// As many operations as one JSON patch may have; the same as the original's.
pub const MAX_OPERATIONS: usize = 10_000;
/// What all the copies of a JSON patch may add. `copy` can double a document each time: without this, fifty
/// operations would fill the memory.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// Serde reads no JSON that is deeper than 128, and what a patch made must be readable after it is stored.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is wrong, whatever it is applied to: a bad request.
    #[error("patch is malformed at {path}: {what}")]
    Malformed { path: String, what: String },
    /// The patch does not fit the object: cannot be processed.
    #[error("patch cannot be applied at {path}: {what}")]
    NotApplicable { path: String, what: String },
    /// More than this server works on: too large.
    #[error("patch is too large: {what} exceed the limit of {limit}")]
    TooLarge { what: &'static str, limit: usize },
}

/// The object that the patch makes of `current`. `schema` is the type's name in [`crate::schema`], which strategic
/// patches need; for a type that is not there, such a patch is a plain merge.
pub fn apply(kind: PatchKind, schema: &str, current: &Value, patch: &Value) -> Result<Value, Error> {
    let patched = match kind {
        PatchKind::Json => json(current, patch)?,
        PatchKind::Merge => merge(current, patch)?,
        PatchKind::Strategic => match crate::schema::message(schema) {
            Some(message) => strategic::apply(message, current, patch)?,
            None => merge(current, patch)?,
        },
    };
    if depth(&patched, MAX_DEPTH + 1) > MAX_DEPTH {
        return Err(Error::TooLarge { what: "levels", limit: MAX_DEPTH });
    }
    Ok(patched)
}

fn merge(current: &Value, patch: &Value) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::Malformed { path: "(root)".to_owned(), what: "a merge patch is an object".to_owned() });
    }
    let mut patched = current.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}

fn json(current: &Value, patch: &Value) -> Result<Value, Error> {
    let operations = patch.as_array().ok_or_else(|| Error::Malformed {
        path: "(root)".to_owned(),
        what: "a JSON patch is an array of operations".to_owned(),
    })?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooLarge { what: "operations", limit: MAX_OPERATIONS });
    }
    let mut patched = current.clone();
    let mut copied = 0;
    for (i, operation) in operations.iter().enumerate() {
        let operation: PatchOperation = serde_json::from_value(operation.clone())
            .map_err(|e| Error::Malformed { path: format!("[{i}]"), what: e.to_string() })?;
        guard(&patched, &operation, &mut copied)?;
        // The crate would first copy what it might have to undo; here nobody sees a half-patched document.
        let path = operation.path().to_string();
        let operations = Patch(vec![operation]);
        json_patch::patch_unsafe(&mut patched, &operations)
            .map_err(|e| Error::NotApplicable { path: format!("[{i}] {path}"), what: e.kind.to_string() })?;
    }
    Ok(patched)
}

/// Refuses an operation that would make the document too deep or too large, before it does.
fn guard(document: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), Error> {
    let value = match operation {
        PatchOperation::Add(op) => Some(&op.value),
        PatchOperation::Replace(op) => Some(&op.value),
        PatchOperation::Move(op) => document.resolve(&op.from).ok(),
        PatchOperation::Copy(op) => {
            let value = document.resolve(&op.from).ok();
            *copied += value.map_or(0, size);
            if *copied > MAX_COPIED_BYTES {
                return Err(Error::TooLarge { what: "copied bytes", limit: MAX_COPIED_BYTES });
            }
            value
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    let below = value.map_or(0, |v| depth(v, MAX_DEPTH + 1));
    if operation.path().count() + below > MAX_DEPTH {
        return Err(Error::TooLarge { what: "levels", limit: MAX_DEPTH });
    }
    Ok(())
}

/// About what a value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 3,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(k, v)| k.len() + 4 + size(v)).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests;
