//! The stations that every request passes, in order: route, authenticate, bound, authorize, handle.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use api::status::Status;
use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, Response};
use tokio::{sync::Semaphore, time::timeout};
use tracing::Instrument;

use crate::{
    App,
    authenticate::{Identity, Peer, authenticate},
    authorize::{Verdict, authorize, forbidden},
    handlers, keys, present,
    query::Query,
    route::{self, Route, Verb},
};

/// Requests in progress at once. Reads are answered from memory; writes wait for the disk together, so more of them in
/// one batch cost little. What lasts (watches, logs, exec) is bounded by connections and streams instead.
const MAX_READS: usize = 400;
const MAX_WRITES: usize = 400;
/// How long a request waits for its turn before the client is told to come back.
const MAX_WAIT: Duration = Duration::from_secs(10);
const RETRY_AFTER_SECONDS: u32 = 1;

pub struct InFlight {
    reads: Semaphore,
    writes: Semaphore,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { reads: Semaphore::new(MAX_READS), writes: Semaphore::new(MAX_WRITES) }
    }
}

/// One request to its answer. A panic in a handler costs its own request and nothing else.
pub async fn handle(app: Arc<App>, peer: Peer, request: Request<Body>) -> Response<Body> {
    let span = tracing::debug_span!("request", verb = %request.method(), path = request.uri().path(), user = tracing::field::Empty);
    let answer = AssertUnwindSafe(answer(app, peer, request).instrument(span)).catch_unwind().await;
    match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => present::failure(&status),
        Err(_) => present::failure(&Status::internal("the request ran into a bug; the server's log has the place")),
    }
}

async fn answer(app: Arc<App>, peer: Peer, request: Request<Body>) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri().query());
    let path = request.uri().path();
    let route = match route::parse(request.method(), path, &query) {
        Ok(route) => route,
        // Who may not know what exists learns nothing from a 404 either.
        Err(status) => {
            let identity = authenticate(&peer, request.headers(), &app.pki.service_accounts, &app.store)?;
            return Err(if identity.in_group(crate::authenticate::UNAUTHENTICATED) {
                Status::unauthorized()
            } else {
                status
            });
        }
    };
    let identity = match route {
        // The token of a node or server that joins is checked by the handler itself: it is no user's.
        Route::Join | Route::Servers => match &peer {
            Peer::InProcess(identity) | Peer::Tls(Some(identity)) => Arc::clone(identity),
            Peer::Tls(None) => Arc::new(Identity::anonymous()),
        },
        _ => authenticate(&peer, request.headers(), &app.pki.service_accounts, &app.store)?,
    };
    tracing::Span::current().record("user", identity.user.as_str());

    let _turn = match peer {
        // The server's own parts are few, and nothing works when they cannot.
        Peer::InProcess(_) => None,
        Peer::Tls(_) => turn(&app.in_flight, &route).await?,
    };
    check(&app, &identity, &route, path)?;
    handlers::handle(app.clone(), identity, route, query, request).await
}

async fn turn<'a>(in_flight: &'a InFlight, route: &Route) -> Result<Option<tokio::sync::SemaphorePermit<'a>>, Status> {
    let queue = match route {
        Route::Resource(target) if target.verb == Verb::Watch => return Ok(None),
        Route::Resource(target) if matches!(target.subresource.as_str(), "log" | "exec" | "attach") => return Ok(None),
        Route::Resource(target) if !target.verb.is_read() => &in_flight.writes,
        Route::Resource(_) => &in_flight.reads,
        _ => return Ok(None),
    };
    match timeout(MAX_WAIT, queue.acquire()).await {
        Ok(Ok(permit)) => Ok(Some(permit)),
        _ => {
            Err(Status::too_many_requests("too many requests are waiting, please try again later", RETRY_AFTER_SECONDS))
        }
    }
}

fn check(app: &App, identity: &Identity, route: &Route, path: &str) -> Result<(), Status> {
    let allowed = match authorize(identity, route) {
        Verdict::Allow => true,
        Verdict::Deny => false,
        Verdict::IfPodOnNode(node) => match route {
            Route::Resource(target) => {
                let key = keys::object(target.kind, &target.namespace, &target.name);
                let snapshot = app.store.snapshot();
                // An absent pod is the handler's 404: agents ask about pods that are already gone.
                snapshot.get(&key)?.is_none_or(|kv| app.parsed.of(&kv)["spec"]["nodeName"] == node.as_str())
            }
            _ => false,
        },
    };
    match allowed {
        true => Ok(()),
        false if identity.in_group(crate::authenticate::UNAUTHENTICATED) => Err(Status::unauthorized()),
        false => Err(forbidden(identity, route, path)),
    }
}
