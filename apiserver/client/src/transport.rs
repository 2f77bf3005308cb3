//! The seam between a request and whoever answers it: a server in this process, or one behind HTTPS.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::{Service, ServiceExt};

use crate::error::{Error, Result};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Answer = Pin<Box<dyn Future<Output = std::result::Result<Response<Body>, BoxError>> + Send>>;

/// Sends one request. Its URI is a path with a query; who answers it is the transport's business.
pub trait Transport: Send + Sync + 'static {
    fn send(&self, request: Request<Bytes>) -> Answer;
}

/// Calls a server's router in the same process: no socket, no TLS.
pub(crate) struct InProcess<S>(pub S);

impl<S, B> Transport for InProcess<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    S: Clone + Send + Sync + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn send(&self, request: Request<Bytes>) -> Answer {
        let service = self.0.clone();
        Box::pin(async move {
            let response = service.oneshot(request.map(Full::new)).await.map_err(Into::into)?;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        })
    }
}

/// A dead link is noticed within interval + timeout, which must stay well below a node lease's 40 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the API servers over HTTPS. PEM throughout.
#[derive(Clone)]
pub struct Https {
    /// `https://host:port`, tried in turn while one does not answer.
    pub servers: Vec<String>,
    pub ca: Vec<u8>,
    /// Certificate and key of the client, in one PEM text.
    pub identity: Vec<u8>,
}

/// The certificate by which a client shows who it is, to be replaced before it expires.
pub struct Credentials {
    ca: Vec<u8>,
    connections: Arc<RwLock<reqwest::Client>>,
}

impl Credentials {
    /// Certificate and key in one PEM text. Every request from now on shows them; those under way, watches among them,
    /// end over the connection that they began on.
    pub fn replace(&self, identity: &[u8]) -> Result<()> {
        let next = connect(&self.ca, identity)?;
        *self.connections.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

fn invalid(operation: &str, source: BoxError) -> Error {
    Error::Invalid { operation: operation.to_owned(), source }
}

/// A pool of connections that show this identity.
fn connect(ca: &[u8], identity: &[u8]) -> Result<reqwest::Client> {
    let ca = reqwest::Certificate::from_pem_bundle(ca).map_err(|e| invalid("read the CA certificate", e.into()))?;
    let identity =
        reqwest::Identity::from_pem(identity).map_err(|e| invalid("read the client certificate", e.into()))?;
    reqwest::Client::builder()
        .tls_certs_only(ca)
        .identity(identity)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|e| invalid("set up TLS", e.into()))
}

pub(crate) struct HttpsTransport {
    connections: Arc<RwLock<reqwest::Client>>,
    servers: Arc<[Uri]>,
    current: Arc<AtomicUsize>,
}

impl HttpsTransport {
    pub(crate) fn new(config: &Https) -> Result<HttpsTransport> {
        let servers = config
            .servers
            .iter()
            .map(|s| s.parse::<Uri>().map_err(|e| invalid(&format!("read the server address {s:?}"), e.into())))
            .collect::<Result<Arc<[Uri]>>>()?;
        if servers.is_empty() {
            return Err(invalid("connect", "no API server is named".into()));
        }
        let connections = Arc::new(RwLock::new(connect(&config.ca, &config.identity)?));
        Ok(HttpsTransport { connections, servers, current: Arc::default() })
    }

    pub(crate) fn credentials(&self, config: &Https) -> Credentials {
        Credentials { ca: config.ca.clone(), connections: Arc::clone(&self.connections) }
    }
}

impl Transport for HttpsTransport {
    fn send(&self, request: Request<Bytes>) -> Answer {
        let client = self.connections.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (servers, current) = (Arc::clone(&self.servers), Arc::clone(&self.current));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
            let mut last = None;
            for _ in 0..servers.len() {
                let index = current.load(Ordering::Relaxed);
                let base = servers[index % servers.len()].to_string();
                let url = format!("{}{path}", base.trim_end_matches('/'));
                let attempt =
                    client.request(parts.method.clone(), url).headers(parts.headers.clone()).body(body.clone());
                match attempt.send().await {
                    Ok(response) => {
                        let response: Response<reqwest::Body> = response.into();
                        return Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()));
                    }
                    // Only a connection that never came about is safe to repeat elsewhere: anything later may have been done.
                    Err(error) if error.is_connect() => {
                        let next = index.wrapping_add(1);
                        let _ = current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
                        last = Some(error);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(last.map_or_else(|| "no API server is named".into(), Into::into))
        })
    }
}
