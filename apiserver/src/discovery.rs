//! What is served: discovery in its three forms, and OpenAPI.

use std::{
    collections::BTreeMap,
    sync::{LazyLock, Mutex, OnceLock},
};

use api::{
    openapi,
    registry::{ALL, Kind},
    status::Status,
};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    App, VERSION, entropy,
    handlers::header_text,
    negotiate::{self, Form},
    present,
};

/// Forms of `/api` and `/apis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DiscoveryForm {
    Legacy,
    V2beta1,
    V2,
}

impl DiscoveryForm {
    fn content_type(self) -> &'static str {
        match self {
            Self::Legacy => "application/json",
            Self::V2beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        }
    }

    /// The first form of an `Accept` header that we know; JSON is the last resort.
    fn accepted(accept: &str) -> Self {
        let form = |clause: &str| {
            let has = |parameter: &str| clause.split(';').any(|p| p.trim() == parameter);
            let aggregated = has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList");
            match clause.split(';').next()?.trim() {
                "application/json" if aggregated && has("v=v2") => Some(Self::V2),
                "application/json" if aggregated && has("v=v2beta1") => Some(Self::V2beta1),
                "application/json" | "*/*" | "application/*" if !clause.contains("as=") => Some(Self::Legacy),
                _ => None,
            }
        };
        accept.split(',').find_map(form).unwrap_or(Self::Legacy)
    }
}

/// A document that changes only with the program, made when first asked for.
#[derive(Clone)]
struct Document {
    body: Bytes,
    etag: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        Self::of_bytes(value.to_string().into())
    }

    fn of_bytes(body: Bytes) -> Self {
        let etag = format!("\"{}\"", entropy::hex(&Sha256::digest(&body)[..16]).to_uppercase());
        Self { body, etag }
    }

    fn answer(&self, content_type: &'static str, headers: &HeaderMap) -> Response<Body> {
        let known = is_known(&self.etag, headers);
        let (code, body) =
            if known { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, self.body.clone()) };
        let mut response = present::bytes(code, content_type, body);
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }
}

fn is_known(etag: &str, headers: &HeaderMap) -> bool {
    header_text(headers, header::IF_NONE_MATCH).split(',').any(|tag| tag.trim() == etag)
}

/// Documents by their names: as many as there are groups, versions and forms.
#[derive(Default)]
pub struct Documents(Mutex<BTreeMap<String, Document>>);

impl Documents {
    fn get(&self, name: &str, make: impl FnOnce() -> Option<Value>) -> Option<Document> {
        let mut documents = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(document) = documents.get(name) {
            return Some(document.clone());
        }
        let document = Document::new(&make()?);
        documents.insert(name.to_owned(), document.clone());
        Some(document)
    }
}

/// Groups with their versions, in the order of the registry.
fn group_versions() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in ALL {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version) => {}
            Some((_, versions)) => versions.push(kind.version),
            None => groups.push((kind.group, vec![kind.version])),
        }
    }
    groups
}

fn kinds(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    ALL.iter().copied().filter(move |k| k.group == group && k.version == version)
}

/// `/api`
pub fn core(app: &App, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let form = DiscoveryForm::accepted(header_text(headers, header::ACCEPT));
    let make = || match form {
        DiscoveryForm::Legacy => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": app.advertised()}],
        }),
        form => aggregated(form, |group| group.is_empty()),
    };
    let document = app.documents.get(&format!("/api {form:?}"), || Some(make()));
    document.map(|d| d.answer(form.content_type(), headers)).ok_or_else(Status::no_such_resource)
}

/// `/apis`
pub fn groups(app: &App, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let form = DiscoveryForm::accepted(header_text(headers, header::ACCEPT));
    let make = || match form {
        DiscoveryForm::Legacy => {
            let groups = group_versions().into_iter().filter(|(group, _)| !group.is_empty());
            let groups: Vec<_> = groups.map(|(group, versions)| api_group(group, &versions)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        form => aggregated(form, |group| !group.is_empty()),
    };
    let document = app.documents.get(&format!("/apis {form:?}"), || Some(make()));
    document.map(|d| d.answer(form.content_type(), headers)).ok_or_else(Status::no_such_resource)
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first()})
}

/// `/apis/apps`
pub fn group(group: &str, form: Form) -> Result<Response<Body>, Status> {
    let found = group_versions().into_iter().find(|(name, _)| !name.is_empty() && *name == group);
    let (name, versions) = found.ok_or_else(Status::no_such_resource)?;
    let mut shown = api_group(name, &versions);
    shown["kind"] = "APIGroup".into();
    shown["apiVersion"] = "v1".into();
    Ok(present::value(StatusCode::OK, form, &shown))
}

/// `/apis/apps/v1`
pub fn version(group: &str, version: &str, form: Form) -> Result<Response<Body>, Status> {
    let resources: Vec<Value> = kinds(group, version).flat_map(legacy_resources).collect();
    if resources.is_empty() {
        return Err(Status::no_such_resource());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    });
    Ok(present::value(StatusCode::OK, form, &list))
}

/// A subresource as discovery needs it, whoever implements it.
struct Sub {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

fn subresources(kind: &Kind) -> Vec<Sub> {
    const VIEW: &[&str] = &["get", "patch", "update"];
    let mut all = Vec::new();
    if kind.has_status {
        all.push(Sub { name: "status", group: kind.group, version: kind.version, kind: kind.kind, verbs: VIEW });
    }
    if kind.scale.is_some() {
        all.push(Sub { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: VIEW });
    }
    all.extend(kind.subresources.iter().map(|s| {
        // A row without a version means the kind's own group and version.
        let (group, version) = if s.version.is_empty() { (kind.group, kind.version) } else { (s.group, s.version) };
        Sub { name: s.name, group, version, kind: s.kind, verbs: s.verbs }
    }));
    all.sort_by_key(|s| s.name);
    all
}

fn legacy_resources(kind: &'static Kind) -> Vec<Value> {
    let mut main = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced(), "kind": kind.kind,
        "verbs": kind.verbs,
    });
    add_names(kind, &mut main);
    let sub = |s: Sub| {
        let name = format!("{}/{}", kind.plural, s.name);
        let mut shown = json!({
            "name": name, "singularName": "", "namespaced": kind.namespaced(), "kind": s.kind, "verbs": s.verbs,
        });
        if (s.group, s.version) != (kind.group, kind.version) {
            shown["group"] = s.group.into();
            shown["version"] = s.version.into();
        }
        shown
    };
    std::iter::once(main).chain(subresources(kind).into_iter().map(sub)).collect()
}

fn add_names(kind: &Kind, shown: &mut Value) {
    for (field, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if !names.is_empty() {
            shown[field] = json!(names);
        }
    }
}

fn aggregated(form: DiscoveryForm, wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|v| {
                    let resources: Vec<Value> = kinds(group, v).map(aggregated_resource).collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let version = if form == DiscoveryForm::V2 { "v2" } else { "v2beta1" };
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut shown = json!({
        "resource": kind.plural,
        "responseKind": response_kind(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    add_names(kind, &mut shown);
    let subs: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|s| json!({"subresource": s.name, "responseKind": response_kind(s.group, s.version, s.kind), "verbs": s.verbs}))
        .collect();
    if !subs.is_empty() {
        shown["subresources"] = subs.into();
    }
    shown
}

/// What `/` lists.
pub fn paths() -> Vec<String> {
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned)
            .to_vec();
    for (group, versions) in group_versions() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
        let prefix = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        paths.extend(versions.iter().map(|v| format!("{prefix}/{v}")));
    }
    paths.sort();
    paths
}

/// Changes with the program, as all the documents do.
static HASH: LazyLock<String> = LazyLock::new(|| entropy::hex(&Sha256::digest(VERSION)[..16]).to_uppercase());

pub fn openapi_index(app: &App, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let document = app.documents.get("/openapi/v3", || Some(openapi::index(&HASH)));
    document.map(|d| d.answer("application/json", headers)).ok_or_else(Status::no_such_resource)
}

pub fn openapi(app: &App, group: &str, version: &str, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let document = app.documents.get(&format!("/openapi/v3 {group}/{version}"), || openapi::document(group, version));
    document.map(|d| d.answer("application/json", headers)).ok_or_else(Status::no_such_resource)
}

/// Forms of `/openapi/v2`, by what is asked for. Protobuf has two names: older clients know only the one with the at
/// sign, which is no valid media type, and refuse an answer that bears it.
const SWAGGER_FORMS: [(&str, SwaggerForm); 3] = [
    ("application/json", SwaggerForm::Json),
    ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", SwaggerForm::Protobuf),
    ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", SwaggerForm::Protobuf),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwaggerForm {
    Json,
    Protobuf,
}

impl SwaggerForm {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => SWAGGER_FORMS[0].0,
            Self::Protobuf => SWAGGER_FORMS[2].0,
        }
    }

    /// The first form of an `Accept` header that we know.
    fn accepted(accept: &str) -> Result<Self, Status> {
        let form = |clause: &str| match negotiate::media_type(clause) {
            "" | "*/*" | "application/*" => Some(Self::Json),
            media_type => SWAGGER_FORMS.iter().find(|(name, _)| *name == media_type).map(|(_, form)| *form),
        };
        accept.split(',').find_map(form).ok_or_else(|| Status::not_acceptable(&SWAGGER_FORMS.map(|(name, _)| name)))
    }

    fn make(self) -> Document {
        let document = openapi::swagger::document();
        match self {
            Self::Json => Document::new(&document),
            Self::Protobuf => Document::of_bytes(openapi::gnostic::encode(&document).into()),
        }
    }
}

/// Only the tags of these documents are kept: they are large, and few clients ask.
#[derive(Default)]
pub struct SwaggerTags {
    json: OnceLock<String>,
    protobuf: OnceLock<String>,
}

impl SwaggerTags {
    fn of(&self, form: SwaggerForm) -> &OnceLock<String> {
        match form {
            SwaggerForm::Json => &self.json,
            SwaggerForm::Protobuf => &self.protobuf,
        }
    }
}

/// `/openapi/v2`
pub async fn swagger(app: &App, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let form = SwaggerForm::accepted(header_text(headers, header::ACCEPT))?;
    let tag = app.swagger_tags.of(form);
    if let Some(etag) = tag.get().filter(|etag| is_known(etag, headers)) {
        return Ok(Document { body: Bytes::new(), etag: etag.clone() }.answer(form.content_type(), headers));
    }
    let made = tokio::task::spawn_blocking(move || form.make()).await;
    let document = made.map_err(|_| Status::internal("cannot make the document"))?;
    tag.get_or_init(|| document.etag.clone());
    Ok(document.answer(form.content_type(), headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_is_given() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        for (accept, want) in [
            (kubectl, DiscoveryForm::V2),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer,application/json",
                DiscoveryForm::V2,
            ),
            ("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", DiscoveryForm::V2beta1),
            (
                "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,application/json",
                DiscoveryForm::Legacy,
            ),
            ("application/vnd.kubernetes.protobuf,application/json", DiscoveryForm::Legacy),
            ("", DiscoveryForm::Legacy),
        ] {
            assert_eq!(DiscoveryForm::accepted(accept), want, "{accept}");
        }
    }

    #[test]
    fn every_kind_is_discovered_in_every_form() {
        let v2 = aggregated(DiscoveryForm::V2, |_| true);
        let resources = |v: &Value| v["resources"].as_array().map_or(0, Vec::len);
        let count: usize =
            v2["items"].as_array().unwrap().iter().flat_map(|g| g["versions"].as_array().unwrap()).map(resources).sum();
        assert_eq!(count, ALL.len());
        let pods = legacy_resources(api::registry::by_plural("", "v1", "pods").unwrap());
        let eviction = pods.iter().find(|r| r["name"] == "pods/eviction").unwrap();
        assert_eq!((eviction["group"].as_str(), eviction["version"].as_str()), (Some("policy"), Some("v1")));
        assert!(paths().contains(&"/apis/apps/v1".to_owned()));
    }

    #[test]
    fn forms_of_swagger() {
        let (at, dot) = (SWAGGER_FORMS[1].0, SWAGGER_FORMS[2].0);
        for (accept, want) in [
            ("", Some(SwaggerForm::Json)),
            ("*/*", Some(SwaggerForm::Json)),
            ("application/json; charset=utf-8", Some(SwaggerForm::Json)),
            (at, Some(SwaggerForm::Protobuf)),
            (&format!("{dot}, application/json"), Some(SwaggerForm::Protobuf)),
            (&format!("text/html, {at}"), Some(SwaggerForm::Protobuf)),
            ("text/html", None),
        ] {
            assert_eq!(SwaggerForm::accepted(accept).ok(), want, "{accept}");
        }
    }

    #[test]
    fn a_known_document_is_not_sent_again() {
        let document = Document::new(&json!({"a": 1}));
        let mut headers = HeaderMap::new();
        assert_eq!(document.answer("application/json", &headers).status(), StatusCode::OK);
        headers.insert(header::IF_NONE_MATCH, document.etag.parse().unwrap());
        assert_eq!(document.answer("application/json", &headers).status(), StatusCode::NOT_MODIFIED);
    }
}
