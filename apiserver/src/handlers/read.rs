//! Get and list.

use std::sync::Arc;

use api::status::{Reason, Status};
use axum::body::Body;
use http::{Response, StatusCode};
use store::KeyValue;

use super::Call;
use crate::{
    encryption::View,
    filter::Filter,
    keys,
    options::{self, At, ListOptions},
    present::{self, ListMeta},
};

pub async fn get(call: Call) -> Result<Response<Body>, Status> {
    let view = call.view()?;
    let snapshot = call.app.snapshot(options::get(&call.query)?).await?;
    let key = keys::object(call.target.kind, &call.target.namespace, &call.target.name);
    let kv = snapshot.get(&key)?.ok_or_else(|| Status::not_found(call.target.kind, &call.target.name))?;
    Ok(present::object(StatusCode::OK, view, &kv.value, kv.mod_revision))
}

pub async fn list(call: Call) -> Result<Response<Body>, Status> {
    let view = call.view()?;
    let filter = Filter::parse(&call.target, &call.query)?;
    let wanted = options::list(&call.query)?;
    let snapshot = match call.app.snapshot(wanted.at).await {
        Ok(snapshot) => snapshot,
        Err(status) if status.reason == Reason::Expired => return Ok(expired(&status, &wanted)),
        Err(status) => return Err(status),
    };
    let (items, list_meta) = page(&call.app.parsed, &filter, &wanted, &snapshot)?;
    Ok(present::list(view, items, &list_meta))
}

/// The items of one page and what the list says about the rest.
fn page(
    parsed: &crate::stored::Parsed,
    filter: &Filter,
    wanted: &ListOptions,
    snapshot: &View<'_>,
) -> Result<(Vec<Arc<KeyValue>>, ListMeta), Status> {
    let mut start = filter.range.start.to_vec();
    start.extend_from_slice(wanted.start.as_bytes());
    let everything = filter.is_everything();
    let matching = filter.shown(parsed, snapshot.range(&start, &filter.range.end));
    let mut list_meta = ListMeta { revision: snapshot.revision(), next: None, remaining: None };
    if wanted.limit == 0 {
        return Ok((matching.collect::<Result<_, _>>()?, list_meta));
    }
    let mut items: Vec<_> = matching.take(wanted.limit.saturating_add(1)).collect::<Result<_, _>>()?;
    if items.len() > wanted.limit {
        items.truncate(wanted.limit);
        let last = items.last().map(|kv| &kv.key[filter.range.start.len()..]).unwrap_or_default();
        let next = format!("{}\0", String::from_utf8_lossy(last));
        if everything {
            let mut rest = filter.range.start.to_vec();
            rest.extend_from_slice(next.as_bytes());
            list_meta.remaining = Some(snapshot.count(&rest, &filter.range.end));
        }
        list_meta.next = Some(options::token(Some(snapshot.revision()), &next));
    }
    Ok((items, list_meta))
}

/// 410: with a token that goes on in the newest state, for clients that prefer an uneven list to none.
fn expired(status: &Status, wanted: &ListOptions) -> Response<Body> {
    let mut body = status.to_json();
    if !wanted.start.is_empty() && matches!(wanted.at, At::Exact(_)) {
        body["message"] = "The continue token is too old for a consistent list. Start again without it, or go on with \
                           the token of this answer, which reads the rest from the newest state: objects that changed \
                           since the first page may then be missing or shown twice."
            .into();
        body["metadata"]["continue"] = options::token(None, &wanted.start).into();
    }
    present::failure_json(status, &body)
}
