//! Typed requests.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use k8s_openapi::{
    api::core::v1::Binding,
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use tower::Service;

use crate::{
    cache::Cache,
    error::{Error, Result},
    object::{self, Object},
    request::{DeleteOptions, List, ListParams, Patch, collection, decode_list, item, with_query},
    transport::{Body, BoxError, Credentials, Https, HttpsTransport, InProcess, Transport},
};

/// Longer than any single request may honestly take; watches are exempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A list of 100,000 large pods fits; a runaway answer does not.
const MAX_BODY: usize = 1 << 30;

type Caches = HashMap<(TypeId, ListParams), Arc<dyn Any + Send + Sync>>;

/// A handle to the API. Clones share connections and caches.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    caches: Arc<Mutex<Caches>>,
}

impl Client {
    pub fn new(transport: impl Transport) -> Client {
        Client { transport: Arc::new(transport), caches: Arc::default() }
    }

    /// A client of a server in this process, given its router.
    pub fn in_process<S, B>(service: S) -> Client
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        S: Clone + Send + Sync + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Client::new(InProcess(service))
    }

    /// The same client with the caches of `other`: for parts of one process that may read the same.
    pub fn sharing_caches_of(self, other: &Client) -> Client {
        Client { caches: Arc::clone(&other.caches), ..self }
    }

    /// A client of servers behind HTTPS, and what replaces its certificate when that gets old.
    pub fn https(config: &Https) -> Result<(Client, Credentials)> {
        let transport = HttpsTransport::new(config)?;
        let credentials = transport.credentials(config);
        Ok((Client::new(transport), credentials))
    }

    /// The shared cache of a whole kind, started at its first use.
    pub fn cache<K: Object>(&self) -> Arc<Cache<K>> {
        self.cache_where(ListParams::default())
    }

    /// The shared cache of a part of a kind, such as one node's pods.
    pub fn cache_where<K: Object>(&self, params: ListParams) -> Arc<Cache<K>> {
        let mut caches = self.caches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let entry = caches.entry((TypeId::of::<K>(), params.clone())).or_insert_with(|| {
            // A cache must not own the client that owns it.
            let reader = Client { transport: Arc::clone(&self.transport), caches: Arc::default() };
            Arc::new(Cache::<K>::start(reader, params))
        });
        match Arc::clone(entry).downcast() {
            Ok(cache) => cache,
            Err(_) => unreachable!("caches are filed under their type"),
        }
    }

    pub async fn get<K: Object>(&self, namespace: &str, name: &str) -> Result<K> {
        self.call(Method::GET, item::<K>(namespace, name), None).await
    }

    /// All objects of a namespace, or of all namespaces when it is empty, as of now.
    pub async fn list<K: Object>(&self, namespace: &str, params: &ListParams) -> Result<List<K>> {
        let answer = self.fetch(with_query(collection::<K>(namespace), &params.query())).await?;
        decode_list(&answer)
    }

    pub async fn create<K: Object>(&self, object: &K) -> Result<K> {
        let url = collection::<K>(object::namespace(object));
        self.call(Method::POST, url, Some(json(object)?)).await
    }

    pub async fn update<K: Object>(&self, object: &K) -> Result<K> {
        let url = item::<K>(object::namespace(object), object::name(object));
        self.call(Method::PUT, url, Some(json(object)?)).await
    }

    pub async fn update_status<K: Object>(&self, object: &K) -> Result<K> {
        let url = item::<K>(object::namespace(object), object::name(object)) + "/status";
        self.call(Method::PUT, url, Some(json(object)?)).await
    }

    pub async fn patch<K: Object>(&self, namespace: &str, name: &str, patch: &Patch) -> Result<K> {
        self.call(Method::PATCH, item::<K>(namespace, name), Some(patch_body(patch)?)).await
    }

    pub async fn patch_status<K: Object>(&self, namespace: &str, name: &str, patch: &Patch) -> Result<K> {
        self.call(Method::PATCH, item::<K>(namespace, name) + "/status", Some(patch_body(patch)?)).await
    }

    /// Asks for an object's end; finalizers and grace decide when it comes.
    pub async fn delete<K: Object>(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<()> {
        let _: serde::de::IgnoredAny =
            self.call(Method::DELETE, item::<K>(namespace, name), Some(json(options)?)).await?;
        Ok(())
    }

    /// Gives a pod its node.
    pub async fn bind(&self, namespace: &str, pod: &str, node: &str) -> Result<()> {
        let binding = Binding {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(pod.to_owned()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let url = item::<k8s_openapi::api::core::v1::Pod>(namespace, pod) + "/binding";
        let _: serde::de::IgnoredAny = self.call(Method::POST, url, Some(json(&binding)?)).await?;
        Ok(())
    }

    /// One request with a whole answer. `url` is a path with its query.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, url: String, content: Option<Content>) -> Result<T> {
        let operation = format!("{method} {url}");
        let body = self.exchange(method, url, content).await?;
        serde_json::from_slice(&body).map_err(|source| Error::Decode { operation, source })
    }

    pub(crate) async fn fetch(&self, url: String) -> Result<Bytes> {
        self.exchange(Method::GET, url, None).await
    }

    async fn exchange(&self, method: Method, url: String, content: Option<Content>) -> Result<Bytes> {
        let operation = format!("{method} {url}");
        let exchange = async {
            let response = self.open(method, url, content).await?;
            collect(&operation, response.into_body()).await
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
            Ok(body) => body,
            Err(elapsed) => Err(Error::Transport { operation, source: Box::new(elapsed) }),
        }
    }

    /// One request whose successful answer is still to be read.
    pub(crate) async fn open(&self, method: Method, url: String, content: Option<Content>) -> Result<Response<Body>> {
        let operation = format!("{method} {url}");
        let request = build(method, &url, content)?;
        let answer = self.transport.send(request).await;
        let response = answer.map_err(|source| Error::Transport { operation: operation.clone(), source })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let body = collect(&operation, response.into_body()).await?;
        Err(Error::Api(Box::new(failure(code, &body))))
    }
}

fn build(method: Method, url: &str, content: Option<Content>) -> Result<Request<Bytes>> {
    let operation = format!("{method} {url}");
    let mut request = Request::builder().method(method).uri(url).header(header::ACCEPT, "application/json");
    let mut bytes = Bytes::new();
    if let Some(content) = content {
        request = request.header(header::CONTENT_TYPE, content.kind);
        bytes = content.bytes;
    }
    request.body(bytes).map_err(|e| Error::Invalid { operation, source: e.into() })
}

/// A request's body and its media type.
pub struct Content {
    pub kind: &'static str,
    pub bytes: Bytes,
}

impl Content {
    pub fn json(body: &impl Serialize) -> Result<Content> {
        json(body)
    }

    pub fn patch(patch: &Patch) -> Result<Content> {
        patch_body(patch)
    }
}

fn json(body: &impl Serialize) -> Result<Content> {
    encode("application/json", body)
}

fn patch_body(patch: &Patch) -> Result<Content> {
    encode(patch.content_type(), patch.body())
}

fn encode(kind: &'static str, body: &impl Serialize) -> Result<Content> {
    let bytes = serde_json::to_vec(body)
        .map_err(|source| Error::Invalid { operation: "encode a request".to_owned(), source: source.into() })?;
    Ok(Content { kind, bytes: bytes.into() })
}

async fn collect(operation: &str, mut body: Body) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let broken = |source| Error::Transport { operation: operation.to_owned(), source };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > MAX_BODY {
            return Err(broken("the answer is larger than any list may be".into()));
        }
    }
    Ok(whole.freeze())
}

/// The server's `Status`, or one made up from the code when something else answered (a proxy, a half-dead server).
fn failure(code: StatusCode, body: &[u8]) -> Status {
    let parsed: Option<Status> = serde_json::from_slice(body).ok();
    let mut status = parsed.unwrap_or_else(|| Status {
        message: Some(format!(
            "the API server answered {code}: {}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        )),
        ..Status::default()
    });
    status.code.get_or_insert(i32::from(code.as_u16()));
    status
}
