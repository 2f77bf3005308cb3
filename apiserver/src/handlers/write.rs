//! Create, update, patch, delete.

use std::sync::Arc;

use api::{
    meta,
    patch::{self, PatchKind},
    registry::Part,
    status::{self, Reason, Status},
};
use axum::body::Body;
use futures_util::future::join_all;
use http::{Response, StatusCode, header};
use serde_json::Value;
use store::KeyValue;

use super::{Call, header_text};
use crate::{
    admit::{self, DeleteOptions, Propagation},
    body,
    filter::Filter,
    negotiate::{self, BodyFormat},
    objects::{Gone, Spot},
    options::{At, DryRun, FieldValidation},
    present,
    query::Query,
};

pub async fn create(mut call: Call) -> Result<Response<Body>, Status> {
    let (format, validation, dry_run) = (call.body_format()?, call.field_validation()?, call.dry_run()?);
    let bytes = call.take_body().await?;
    let (object, warnings) = body::object(call.target.kind, format, &bytes, validation)?;
    refuse_foreign(&call, &object)?;
    let stored = call.app.create(call.stored_kind(), &call.target.namespace, object, dry_run).await?;
    let mut response = present::object(StatusCode::CREATED, call.view()?, &stored.value, stored.revision);
    present::warn(&mut response, &warnings);
    Ok(response)
}

/// A node creates its own Node and its own lease: only the body of a create has the name.
fn refuse_foreign(call: &Call, object: &Value) -> Result<(), Status> {
    let Some(node) = call.identity.node() else { return Ok(()) };
    let (kind, name) = (call.target.kind, meta::name(object));
    if matches!(kind.kind, "Node" | "Lease") && name != node {
        return Err(Status::forbidden(kind, name, &format!("node \"{node}\" may create only its own")));
    }
    Ok(())
}

pub async fn update(mut call: Call) -> Result<Response<Body>, Status> {
    let (format, validation) = (call.body_format()?, call.field_validation()?);
    let bytes = call.take_body().await?;
    let (object, warnings) = body::object(call.target.kind, format, &bytes, validation)?;
    let spot = call.spot()?;
    let stored = match call.target.subresource.as_str() {
        "finalize" => call.app.update(spot, |old| admit::finalize(spot.kind, &object, old)).await?,
        _ => {
            let part = part(&call);
            call.app.update(spot, |old| admit::update(spot.kind, object.clone(), old, part)).await?
        }
    };
    let mut response = present::object(StatusCode::OK, call.view()?, &stored.value, stored.revision);
    present::warn(&mut response, &warnings);
    Ok(response)
}

fn part(call: &Call) -> Part {
    if call.target.subresource == "status" { Part::Status } else { Part::Main }
}

/// The patch kinds that we apply.
const PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// How a patch is written, and the patch.
pub fn read_patch(content_type: &str, bytes: &[u8]) -> Result<(PatchKind, Value), Status> {
    let kind = match negotiate::media_type(content_type) {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        _ => return Err(Status::unsupported_media_type(PATCHES)),
    };
    let (patch, _) = body::parse(BodyFormat::Json, bytes, FieldValidation::Ignore)?;
    Ok((kind, patch))
}

pub fn patch_failure(error: &patch::Error) -> Status {
    let message = error.to_string();
    match error {
        patch::Error::Malformed { .. } => Status::bad_request(message),
        patch::Error::NotApplicable { .. } => Status::new(Reason::Invalid, message),
        patch::Error::TooLarge { .. } => Status::new(Reason::RequestEntityTooLarge, message),
    }
}

pub async fn patch(mut call: Call) -> Result<Response<Body>, Status> {
    let validation = call.field_validation()?;
    let content_type = header_text(&call.parts.headers, header::CONTENT_TYPE).to_owned();
    let bytes = call.take_body().await?;
    let (patch_kind, patch) = read_patch(&content_type, &bytes)?;
    let (spot, part, kind) = (call.spot()?, part(&call), call.target.kind);
    let view = call.view()?;
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        let current = view.object(old);
        let mut new = patch::apply(patch_kind, kind.schema, &current, &patch).map_err(|e| patch_failure(&e))?;
        warnings = body::check(kind, &mut new, Vec::new(), validation)?;
        admit::update(spot.kind, new, old, part)
    };
    let stored = call.app.update(spot, change).await?;
    let mut response = present::object(StatusCode::OK, view, &stored.value, stored.revision);
    present::warn(&mut response, &warnings);
    Ok(response)
}

/// Delete options come in the body, in the query, or not at all.
pub fn delete_options(format: BodyFormat, bytes: &[u8], query: &Query) -> Result<DeleteOptions, Status> {
    let mut options = if bytes.iter().all(u8::is_ascii_whitespace) {
        DeleteOptions::default()
    } else {
        let (value, _) = body::parse(format, bytes, FieldValidation::Ignore)?;
        let wrong = |e| Status::bad_request(format!("error decoding delete options: {e}"));
        serde_json::from_value(value).map_err(wrong)?
    };
    if let Some(text) = query.get("gracePeriodSeconds") {
        let wrong = |_| Status::bad_request(format!("gracePeriodSeconds must be a number, not {text:?}"));
        options.grace_period_seconds = Some(text.parse().map_err(wrong)?);
    }
    match query.get("propagationPolicy") {
        None => {}
        Some("Orphan") => options.propagation_policy = Some(Propagation::Orphan),
        Some("Background") => options.propagation_policy = Some(Propagation::Background),
        Some("Foreground") => options.propagation_policy = Some(Propagation::Foreground),
        Some(other) => {
            let why = format!("propagationPolicy must be Orphan, Background or Foreground, not {other:?}");
            return Err(Status::bad_request(why));
        }
    }
    if query.get("orphanDependents").is_some() {
        options.orphan_dependents = Some(query.flag("orphanDependents"));
    }
    Ok(options)
}

async fn read_options(call: &mut Call) -> Result<(DeleteOptions, DryRun), Status> {
    let format = call.body_format()?;
    let bytes = call.take_body().await?;
    let options = delete_options(format, &bytes, &call.query)?;
    let dry_run = match options.dry_run.iter().any(|d| d == "All") {
        true => DryRun::All,
        false => call.dry_run()?,
    };
    Ok((options, dry_run))
}

pub async fn delete(mut call: Call) -> Result<Response<Body>, Status> {
    let (options, dry_run) = read_options(&mut call).await?;
    let spot = Spot { dry_run, ..call.spot()? };
    match call.app.delete(spot, &options).await? {
        Gone::Waiting(stored) => Ok(present::object(StatusCode::OK, call.view()?, &stored.value, stored.revision)),
        Gone::Removed(object) => {
            let answer = status::deleted(call.target.kind, spot.name, meta::uid(&object));
            let form = negotiate::Form { shape: negotiate::Shape::Object, ..call.form };
            Ok(present::value(StatusCode::OK, form, &answer))
        }
    }
}

/// Deletes under way at a time: enough for the store to put many into one sync of the disk.
const DELETES_AT_ONCE: usize = 64;

pub async fn delete_collection(mut call: Call) -> Result<Response<Body>, Status> {
    let (options, dry_run) = read_options(&mut call).await?;
    let filter = Filter::parse(&call.target, &call.query)?;
    let snapshot = call.app.snapshot(At::Latest).await?;
    let values = snapshot.range(&filter.range.start, &filter.range.end);
    let items: Vec<_> = filter.shown(&call.app.parsed, values).collect::<Result<_, _>>()?;
    let revision = snapshot.revision();
    let kind = call.stored_kind();
    for some in items.chunks(DELETES_AT_ONCE) {
        let delete = |kv: &Arc<KeyValue>| {
            let (kv, app, options) = (kv.clone(), call.app.clone(), options.clone());
            async move {
                let (namespace, name) = crate::keys::names(kind, &kv.key);
                app.delete(Spot { kind, namespace, name, dry_run }, &options).await
            }
        };
        for ended in join_all(some.iter().map(delete)).await {
            match ended {
                Ok(_) => {}
                // Somebody else was quicker, and that is all right.
                Err(status) if status.reason == Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
    }
    let list_meta = present::ListMeta { revision, next: None, remaining: None };
    Ok(present::list(call.view()?, items, &list_meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_delete() {
        let body = br#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background","gracePeriodSeconds":5,"preconditions":{"uid":"u"}}"#;
        let read = |body: &[u8], query| delete_options(BodyFormat::Json, body, &Query::parse(Some(query)));
        let options = read(body, "").unwrap();
        assert_eq!(
            (options.grace_period_seconds, options.propagation_policy),
            (Some(5), Some(Propagation::Background))
        );
        assert_eq!(options.preconditions.unwrap().uid.as_deref(), Some("u"));
        let options = read(b"", "gracePeriodSeconds=0&propagationPolicy=Orphan").unwrap();
        assert_eq!((options.grace_period_seconds, options.propagation_policy), (Some(0), Some(Propagation::Orphan)));
        assert!(read(br#"{"propagationPolicy":"Sideways"}"#, "").is_err());
        assert!(read(b"", "gracePeriodSeconds=x").is_err());
    }

    #[test]
    fn patch_types() {
        for (content_type, want) in [
            ("application/json-patch+json", Some(PatchKind::Json)),
            ("application/merge-patch+json; charset=utf-8", Some(PatchKind::Merge)),
            ("application/strategic-merge-patch+json", Some(PatchKind::Strategic)),
            ("application/apply-patch+yaml", None),
            ("application/json", None),
        ] {
            let read = read_patch(content_type, b"{}");
            assert_eq!(read.as_ref().ok().map(|(kind, _)| *kind), want, "{content_type}");
            assert!(read.is_ok() || read.unwrap_err().code == 415);
        }
    }
}
