//! What answers a request that has passed the pipeline: one generic set for every kind, and the few subresources that
//! are special.

use std::sync::Arc;

use api::{registry::Kind, status::Status, table::IncludeObject};
use axum::body::Body;
use http::{HeaderMap, Request, Response, StatusCode, header, request::Parts};
use serde_json::json;

use crate::{
    App, VERSION,
    authenticate::Identity,
    body, discovery, encryption, join, members,
    negotiate::{self, BodyFormat, Form, Indent},
    nodeproxy,
    options::{self, DryRun, FieldValidation},
    peers,
    present::{self, View},
    query::Query,
    route::{Route, Target, Verb},
    snapshot,
};

mod read;
mod special;
mod watch;
mod write;

pub use watch::Frames;

/// One request for objects, understood as far as all handlers need it.
pub struct Call {
    pub app: Arc<App>,
    pub identity: Arc<Identity>,
    pub target: Target,
    pub query: Query,
    pub form: Form,
    pub parts: Parts,
    pub body: Body,
}

impl Call {
    /// The kind under which the objects are stored.
    fn stored_kind(&self) -> &'static Kind {
        self.target.kind.stored()
    }

    fn view(&self) -> Result<View, Status> {
        let include = IncludeObject::parse(self.query.get("includeObject").unwrap_or_default())
            .ok_or_else(|| Status::bad_request("includeObject must be None, Metadata or Object"))?;
        Ok(View { kind: self.target.kind, form: self.form, include })
    }

    fn dry_run(&self) -> Result<DryRun, Status> {
        options::dry_run(&self.query)
    }

    fn field_validation(&self) -> Result<FieldValidation, Status> {
        options::field_validation(&self.query)
    }

    fn body_format(&self) -> Result<BodyFormat, Status> {
        negotiate::body(header_text(&self.parts.headers, header::CONTENT_TYPE))
    }

    fn spot(&self) -> Result<crate::objects::Spot<'_>, Status> {
        let Target { namespace, name, .. } = &self.target;
        Ok(crate::objects::Spot { kind: self.stored_kind(), namespace, name, dry_run: self.dry_run()? })
    }

    /// Reads the body; it is empty afterwards.
    async fn take_body(&mut self) -> Result<bytes::Bytes, Status> {
        body::read(std::mem::take(&mut self.body)).await
    }
}

pub fn header_text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

pub async fn handle(
    app: Arc<App>,
    identity: Arc<Identity>,
    route: Route,
    query: Query,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let indent = if query.get("pretty").is_some() && query.flag("pretty") { Indent::Pretty } else { Indent::Compact };
    let form = Form { indent, ..Form::JSON };
    let headers = request.headers();
    match route {
        Route::Root => Ok(present::value(StatusCode::OK, form, &json!({"paths": discovery::paths()}))),
        Route::Alive => Ok(present::text("ok")),
        Route::Ready => match app.is_ready() && app.has_leader() {
            true => Ok(present::text("ok")),
            false if app.is_ready() => Err(Status::service_unavailable("no server leads the cluster").retry_after(1)),
            false => Err(Status::service_unavailable("the server is starting").retry_after(1)),
        },
        Route::Version => Ok(present::value(StatusCode::OK, form, &version())),
        Route::CaCerts => Ok(present::bytes(StatusCode::OK, "application/x-pem-file", app.pki.ca_pem.clone())),
        Route::Join => join::join(&app, &identity, request).await,
        Route::Snapshot => snapshot::answer(&app).await,
        Route::Encryption => encryption::admin::status(&app).await,
        Route::RotateEncryption => encryption::admin::rotate(&app).await,
        Route::Status => Ok(members::status(&app, headers).await),
        Route::Servers => members::join(&app, &identity, request).await,
        Route::Server { which } if request.method() == http::Method::POST => members::promote(&app, &which).await,
        Route::Server { which } if request.method() == http::Method::PUT => members::place(&app, &which, request).await,
        Route::Server { which } => members::remove(&app, &which).await,
        Route::Raft => peers::receive(&app, request).await,
        Route::RaftSnapshot => peers::receive_snapshot(&app, request).await,
        Route::CoreDiscovery => discovery::core(&app, headers),
        Route::GroupsDiscovery => discovery::groups(&app, headers),
        Route::GroupDiscovery { group } => discovery::group(&group, form),
        Route::VersionDiscovery { group, version } => discovery::version(&group, &version, form),
        Route::Swagger => discovery::swagger(&app, headers).await,
        Route::OpenApiIndex => discovery::openapi_index(&app, headers),
        Route::OpenApi { group, version } => discovery::openapi(&app, &group, &version, headers),
        Route::Resource(target) => {
            let accept = header_text(headers, header::ACCEPT);
            let streams = matches!(target.subresource.as_str(), "log" | "exec" | "attach");
            let form = if streams { form } else { negotiate::response(accept, indent)? };
            let (parts, body) = request.into_parts();
            Box::pin(resource(Call { app, identity, target, query, form, parts, body })).await
        }
    }
}

async fn resource(call: Call) -> Result<Response<Body>, Status> {
    let Target { kind, verb, subresource, .. } = &call.target;
    let unsupported = Err(Status::method_not_allowed(kind, verb.as_str()));
    if subresource.is_empty() && !kind.verbs.contains(&verb.as_str()) {
        return unsupported;
    }
    match (subresource.as_str(), verb) {
        ("", Verb::Get) | ("status", Verb::Get) => read::get(call).await,
        ("", Verb::List) => read::list(call).await,
        ("", Verb::Watch) => watch::watch(call).await,
        ("", Verb::Create) => write::create(call).await,
        ("" | "status" | "finalize", Verb::Update) => write::update(call).await,
        ("" | "status", Verb::Patch) => write::patch(call).await,
        ("", Verb::Delete) => write::delete(call).await,
        ("", Verb::DeleteCollection) => write::delete_collection(call).await,
        ("scale", Verb::Get) => special::get_scale(call).await,
        ("scale", Verb::Update | Verb::Patch) => special::change_scale(call).await,
        ("binding", Verb::Create) => special::bind(call).await,
        ("eviction", Verb::Create) => special::evict(call).await,
        ("token", Verb::Create) => special::token(call).await,
        ("log", Verb::Get) => nodeproxy::log(call).await,
        ("exec" | "attach", Verb::Get | Verb::Create) => nodeproxy::tunnel(call).await,
        _ => unsupported,
    }
}

/// What `/version` answers. Clients compare `major` and `minor` with their own.
fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "35",
        "gitVersion": VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform_architecture()),
    })
}

fn platform_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
