//! The node's own HTTPS server: logs, exec and attach for the API server.
//!
//! - [`tls`]: who may come in
//! - [`logs`]: `GET /containerLogs/..`
//! - [`stream`]: `GET /exec/..` and `GET /attach/..`
//! - [`remote`]: their clients, over WebSocket or SPDY
//! - [`spdy`]: the frames of the latter
//!
//! Invariant: nothing but `/healthz` is answered to anybody whose certificate is not of the cluster's CA and whose
//! organization is not `system:masters`; even that one needs a certificate of the CA.

mod logs;
mod remote;
mod spdy;
mod stream;
pub mod tls;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use client::{Cache, object};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use k8s_openapi::api::core::v1::Pod;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore, sync::watch, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;

use crate::{backend::ContainerRuntime, paths::Paths};

/// The kubelet's port.
pub const PORT: u16 = 10250;
/// One API server holds a connection per log, exec or attach.
const CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub struct Served {
    pub pods: Arc<Cache<Pod>>,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub paths: Paths,
}

/// Binds the port, so that a port in use is told at once.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until dropped. The newest configuration applies to each new connection, so certificates can be renewed.
pub async fn run(listener: TcpListener, config: watch::Receiver<Arc<ServerConfig>>, served: Served) {
    let router = router(served);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: they come back as connections end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
        let router = router.clone();
        connections.spawn(async move {
            let _permit = permit;
            let tls = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return tracing::debug!(%error, "a handshake failed"),
                Err(_) => return,
            };
            let caller = tls::caller(&tls);
            let service = TowerToHyperService::new(router.layer(axum::Extension(caller)));
            let builder = Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
                tracing::debug!(error, "a connection broke off");
            }
        });
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::handle))
        .route("/exec/{namespace}/{pod}/{container}", get(stream::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(stream::attach))
        .route_layer(axum::middleware::from_fn(admit))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(served)
}

async fn admit(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    match request.extensions().get::<tls::Caller>() {
        Some(tls::Caller::Master) => next.run(request).await,
        Some(tls::Caller::Other) | None => {
            (StatusCode::FORBIDDEN, "only the API server may ask this\n").into_response()
        }
    }
}

/// What a path names.
pub(crate) struct Named {
    pub pod: Arc<Pod>,
    pub container: String,
}

pub(crate) type NamedPath = Path<(String, String, String)>;

/// The pod and container of a path, or the answer that says what is missing.
pub(crate) fn named(
    State(served): &State<Served>,
    Path((namespace, pod, container)): &NamedPath,
) -> Result<Named, Box<Response>> {
    let missing = |text: String| Box::new((StatusCode::NOT_FOUND, text).into_response());
    let Some(found) = served.pods.get(namespace, pod) else {
        return Err(missing(format!("pod {namespace}/{pod} is not on this node")));
    };
    let spec = found.spec.as_ref();
    let mut all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    if !all.any(|c| c.name == *container) {
        return Err(missing(format!("container {container} is not valid for pod {}", object::name(&*found))));
    }
    Ok(Named { pod: found, container: container.clone() })
}

/// The query's pairs in their order, decoded.
pub(crate) fn query(uri: &Uri) -> Vec<(String, String)> {
    let text = format!("http://node/?{}", uri.query().unwrap_or_default());
    let parsed = reqwest::Url::parse(&text);
    parsed.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default()
}

pub(crate) fn flag(query: &[(String, String)], name: &str) -> bool {
    query.iter().any(|(key, value)| key == name && matches!(value.as_str(), "true" | "1"))
}

pub(crate) fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_in_order() {
        let uri: Uri =
            "/exec/a/b/c?command=sh&command=-c&command=echo%20%22x%22+y&tty=true&stdin=false".parse().expect("a URI");
        let query = query(&uri);
        let commands: Vec<&str> = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.as_str()).collect();
        assert_eq!(commands, ["sh", "-c", "echo \"x\" y"]);
        assert!(flag(&query, "tty") && !flag(&query, "stdin") && !flag(&query, "stdout"));
        assert_eq!(value(&query, "container"), None);
    }
}
