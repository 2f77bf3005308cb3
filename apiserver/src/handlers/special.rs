//! Subresources that are no view of the object: scale, binding, eviction, token.

use api::{
    meta, patch,
    registry::{Part, Scale, by_plural},
    selector::Selector,
    status::{Cause, CauseReason, Status},
    time,
};
use axum::body::Body;
use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Call, header_text,
    write::{delete_options, patch_failure, read_patch},
};
use crate::{
    admit::{self, DeleteOptions, Updated},
    authenticate::{self, Bound, Claims, ISSUER, Reference},
    body, clock,
    negotiate::{BodyFormat, Form, Shape},
    objects::{Spot, Stored},
    options::FieldValidation,
    present, stored,
};

const SCALE_SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";
/// Shortest and longest life of a requested token, and the one given when nothing is asked for, in seconds.
const TOKEN_LIFE: (i64, i64, i64) = (600, 24 * 3600, 3600);

fn scale_of(call: &Call) -> Result<&'static Scale, Status> {
    call.target.kind.scale.ok_or_else(Status::no_such_resource)
}

/// From the scale as it is to the scale as it is wanted.
type NewScale = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync>;

/// What `/scale` shows of an object.
fn scale(fields: &Scale, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    let mut status = json!({"replicas": number(fields.status_replicas)});
    if let Some(selector) = object.pointer(fields.selector).and_then(selector_text) {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(fields.replicas)}, "status": status,
    })
}

/// A label selector, or a plain map of labels, as text.
fn selector_text(selector: &Value) -> Option<String> {
    let is_plain = selector.as_object()?.values().all(Value::is_string);
    let selector = if is_plain { json!({"matchLabels": selector}) } else { selector.clone() };
    Some(Selector::from_json(&selector).ok()?.to_string())
}

fn show_scale(call: &Call, fields: &Scale, stored: &Stored) -> Result<Response<Body>, Status> {
    let object = stored::decode(&stored.value, stored.revision).map_err(Status::internal)?;
    Ok(present::value(StatusCode::OK, Form { shape: Shape::Object, ..call.form }, &scale(fields, &object)))
}

pub async fn get_scale(call: Call) -> Result<Response<Body>, Status> {
    let fields = scale_of(&call)?;
    let snapshot = call.app.snapshot(crate::options::get(&call.query)?).await?;
    let key = crate::keys::object(call.target.kind, &call.target.namespace, &call.target.name);
    let kv = snapshot.get(&key)?.ok_or_else(|| Status::not_found(call.target.kind, &call.target.name))?;
    show_scale(&call, fields, &Stored { value: kv.value.clone(), revision: kv.mod_revision })
}

/// Update and patch: the wanted count goes into the object, nothing else does.
pub async fn change_scale(mut call: Call) -> Result<Response<Body>, Status> {
    let fields = scale_of(&call)?;
    let content_type = header_text(&call.parts.headers, header::CONTENT_TYPE).to_owned();
    let format = (call.parts.method == Method::PUT).then(|| call.body_format()).transpose()?;
    let bytes = call.take_body().await?;
    let wanted: NewScale = match format {
        Some(format) => {
            let (new, _) = body::parse(format, &bytes, FieldValidation::Ignore)?;
            Box::new(move |_| Ok(new.clone()))
        }
        None => {
            let (kind, patch) = read_patch(&content_type, &bytes)?;
            Box::new(move |old| patch::apply(kind, SCALE_SCHEMA, old, &patch).map_err(|e| patch_failure(&e)))
        }
    };
    let spot = call.spot()?;
    let change = |old: &Value| {
        let new = wanted(&scale(fields, old))?;
        let replicas = match new.pointer("/spec/replicas") {
            None | Some(Value::Null) => 0,
            Some(value) => value
                .as_i64()
                .ok_or_else(|| Status::bad_request(format!("spec.replicas must be a whole number, not {value}")))?,
        };
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            let message = format!("Invalid value: {replicas}: must be greater than or equal to 0");
            let cause = Cause { reason: CauseReason::FieldValueInvalid, message, field: "spec.replicas".into() };
            return Err(Status::invalid(spot.kind, spot.name, vec![cause]));
        }
        let mut object = old.clone();
        if let Some(field) = object.pointer_mut(fields.replicas) {
            *field = replicas.into();
        } else {
            object["spec"]["replicas"] = replicas.into();
        }
        // The scale's own uid and revision are preconditions like any object's.
        for key in ["uid", "resourceVersion"] {
            match new["metadata"].get(key) {
                Some(value) if value != "" => meta::set(&mut object, key, value.clone()),
                _ => meta::unset(&mut object, key),
            }
        }
        admit::update(spot.kind, object, old, Part::Main)
    };
    let stored = call.app.update(spot, change).await?;
    show_scale(&call, fields, &stored)
}

/// Gives a pod its node, once.
pub async fn bind(mut call: Call) -> Result<Response<Body>, Status> {
    let format = call.body_format()?;
    let bytes = call.take_body().await?;
    let (binding, _) = body::parse(format, &bytes, FieldValidation::Ignore)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request("target.name of the binding is empty: it must name a node"));
    }
    let spot = call.spot()?;
    let now = time::rfc3339(clock::seconds());
    call.app.update(spot, |old| bound(&spot, old, &binding, node, &now)).await?;
    Ok(present::success(StatusCode::CREATED, call.form))
}

fn bound(spot: &Spot<'_>, old: &Value, binding: &Value, node: &str, now: &str) -> Result<Updated, Status> {
    let conflict = |why: String| Status::conflict_because(spot.kind, spot.name, &why);
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(old) {
        return Err(conflict(format!("the pod's UID is {}, not {uid}", meta::uid(old))));
    }
    if meta::deletion_timestamp(old).is_some() {
        return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", spot.name)));
    }
    if let Some(current) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return Err(conflict(format!("pod {} is already assigned to node \"{current}\"", spot.name)));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = node.into();
    for (key, value) in meta::annotations(binding).into_iter().flatten() {
        meta::set_annotation(&mut new, key, value.as_str().unwrap_or_default());
    }
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    match new["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => new["status"]["conditions"] = json!([scheduled]),
    }
    Ok(Updated::Put(new))
}

/// A delete that will ask for permission of the pod's disruption budgets.
pub async fn evict(mut call: Call) -> Result<Response<Body>, Status> {
    let format = call.body_format()?;
    let bytes = call.take_body().await?;
    let (eviction, _) = body::parse(format, &bytes, FieldValidation::Ignore)?;
    let options = match eviction.get("deleteOptions").filter(|o| o.is_object()) {
        Some(options) => delete_options(BodyFormat::Json, options.to_string().as_bytes(), &call.query)?,
        None => DeleteOptions::default(),
    };
    let mut spot = call.spot()?;
    if options.dry_run.iter().any(|d| d == "All") {
        spot.dry_run = crate::options::DryRun::All;
    }
    call.app.delete(spot, &options).await?;
    Ok(present::success(StatusCode::CREATED, call.form))
}

/// A token for a service account, bound to it and, if asked for, to a pod.
pub async fn token(mut call: Call) -> Result<Response<Body>, Status> {
    let format = call.body_format()?;
    let bytes = call.take_body().await?;
    let (mut request, _) = body::parse(format, &bytes, FieldValidation::Ignore)?;
    let (app, namespace, name) = (&call.app, call.target.namespace.as_str(), call.target.name.as_str());
    let account =
        app.find(call.target.kind, namespace, name)?.ok_or_else(|| Status::not_found(call.target.kind, name))?;
    if !request.is_object() || request.get("spec").is_some_and(|spec| !spec.is_object() && !spec.is_null()) {
        return Err(Status::bad_request("the body must be a TokenRequest, with a spec that is an object"));
    }
    let spec = &request["spec"];
    let mut aud: Vec<String> = serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
    if aud.is_empty() {
        aud.push(ISSUER.into());
    }
    let (shortest, longest, usual) = TOKEN_LIFE;
    let life = spec["expirationSeconds"].as_i64().unwrap_or(usual);
    if life < shortest {
        return Err(Status::bad_request(format!("spec.expirationSeconds: may not be less than {shortest}")));
    }
    let pod = bound_pod(&call, &spec["boundObjectRef"])?;
    let now = clock::seconds();
    let exp = now + life.min(longest);
    let serviceaccount = Reference { name: name.into(), uid: meta::uid(&account).into() };
    let claims = Claims {
        iss: ISSUER.into(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
        aud,
        exp,
        iat: now,
        nbf: now,
        bound: Bound { namespace: namespace.into(), serviceaccount, pod },
    };
    let token = authenticate::sign(&app.pki.service_accounts, &claims);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"] = json!({"name": name, "namespace": namespace});
    request["spec"]["audiences"] = json!(claims.aud);
    request["spec"]["expirationSeconds"] = (exp - now).into();
    request["status"] = json!({"token": token, "expirationTimestamp": time::rfc3339(exp)});
    Ok(present::value(StatusCode::CREATED, Form { shape: Shape::Object, ..call.form }, &request))
}

/// The pod that a token ends with. A node gets tokens only for pods that run on it.
fn bound_pod(call: &Call, reference: &Value) -> Result<Option<Reference>, Status> {
    let node = call.identity.node();
    let name = reference["name"].as_str().unwrap_or_default();
    if reference["kind"] != "Pod" || name.is_empty() {
        return match node {
            None => Ok(None),
            Some(_) => {
                Err(Status::forbidden(call.target.kind, &call.target.name, "a node's token must be bound to a pod"))
            }
        };
    }
    let Some(pods) = by_plural("", "v1", "pods") else { return Ok(None) };
    let pod = call.app.find(pods, &call.target.namespace, name)?.ok_or_else(|| Status::not_found(pods, name))?;
    let uid = reference["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != meta::uid(&pod) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record ({})",
            meta::uid(&pod)
        );
        return Err(Status::conflict_because(pods, name, &why));
    }
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    if node.is_some_and(|node| pod["spec"]["nodeName"] != node || account != call.target.name) {
        return Err(Status::forbidden(
            call.target.kind,
            &call.target.name,
            "the pod is not this node's, or not this account's",
        ));
    }
    Ok(Some(Reference { name: name.into(), uid: meta::uid(&pod).into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::DryRun;

    const FIELDS: Scale =
        Scale { replicas: "/spec/replicas", status_replicas: "/status/replicas", selector: "/spec/selector" };

    #[test]
    fn scales_show_counts_and_selectors() {
        let object = json!({"metadata": {"name": "a", "labels": {}}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 2}});
        let shown = scale(&FIELDS, &object);
        assert_eq!(
            (&shown["spec"]["replicas"], &shown["status"]),
            (&json!(3), &json!({"replicas": 2, "selector": "a=b"}))
        );
        assert_eq!(shown["metadata"], json!({"name": "a"}));
        assert_eq!(selector_text(&json!({"x": "y"})).as_deref(), Some("x=y"));
    }

    #[test]
    fn a_pod_is_bound_once() {
        let kind = by_plural("", "v1", "pods").unwrap();
        let spot = Spot { kind, namespace: "n", name: "p", dry_run: DryRun::No };
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        let binding = json!({"metadata": {"annotations": {"a": "b"}}});
        let Updated::Put(bound_pod) = bound(&spot, &pod, &binding, "x", "now").unwrap() else { panic!("it changes") };
        assert_eq!(bound_pod["spec"]["nodeName"], "x");
        assert_eq!(bound_pod["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(bound_pod["status"]["conditions"][0]["status"], "True");
        assert_eq!(meta::annotation(&bound_pod, "a"), Some("b"));
        assert_eq!(bound(&spot, &bound_pod, &binding, "y", "now").unwrap_err().code, 409);
        let other = json!({"metadata": {"uid": "other"}});
        assert_eq!(bound(&spot, &pod, &other, "x", "now").unwrap_err().code, 409);
    }
}
