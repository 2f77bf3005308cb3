//! Errors as clients see them: `v1.Status`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::registry::Kind;

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub reason: CauseReason,
    pub message: String,
    /// `spec.containers[0].image`
    pub field: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CauseReason {
    FieldValueRequired,
    FieldValueInvalid,
    FieldValueDuplicate,
    FieldValueForbidden,
    FieldValueNotSupported,
    FieldValueTooLong,
    FieldValueTooMany,
    FieldValueTypeInvalid,
    FieldValueNotFound,
    FieldManagerConflict,
    NamespaceTerminating,
    ResourceVersionTooLarge,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// The machine-readable word of a failure, which clients branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    AlreadyExists,
    BadRequest,
    Conflict,
    Expired,
    Forbidden,
    Gone,
    InternalError,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    RequestEntityTooLarge,
    ServerTimeout,
    ServiceUnavailable,
    Timeout,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
}

impl Reason {
    /// The HTTP status code that goes with the reason.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired | Self::Gone => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::ServerTimeout => 500,
            Self::Timeout => 504,
        }
    }
}

/// What a failed request answers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    /// Boxed, so that a result which may fail is no larger than what it is when it does not.
    pub details: Box<Details>,
}

/// What the failure is about. Empty fields are left out of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The plural resource name; for [`Reason::Invalid`] the kind.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
}

impl Details {
    fn of(kind: &Kind, name: &str) -> Self {
        Self { name: name.to_owned(), group: kind.group.to_owned(), kind: kind.plural.to_owned(), ..Self::default() }
    }

    fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                out.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(cause_json).collect();
            out.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(seconds) = self.retry_after_seconds {
            out.insert("retryAfterSeconds".to_owned(), seconds.into());
        }
        Value::Object(out)
    }
}

fn cause_json(cause: &Cause) -> Value {
    let mut out = json!({"reason": cause.reason, "message": cause.message});
    if !cause.field.is_empty() {
        out["field"] = cause.field.as_str().into();
    }
    out
}

impl Status {
    /// A failure about nothing in particular.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { code: reason.code(), reason, message: message.into(), details: Box::default() }
    }

    fn about(reason: Reason, kind: &Kind, name: &str, message: String) -> Self {
        Self { details: Box::new(Details::of(kind, name)), ..Self::new(reason, message) }
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::about(Reason::NotFound, kind, name, format!("{} \"{name}\" not found", kind.resource()))
    }

    /// The answer to a path that no resource is served at.
    pub fn no_such_resource() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::about(Reason::AlreadyExists, kind, name, format!("{} \"{name}\" already exists", kind.resource()))
    }

    /// The object changed since the client read it.
    pub fn conflict(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again".to_owned();
        Self::conflict_because(kind, name, &why)
    }

    /// A conflict of another nature: a precondition, an immutable identity.
    pub fn conflict_because(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        Self::about(Reason::Conflict, kind, name, message)
    }

    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Self {
        let subject =
            if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut message = format!("{subject} \"{name}\" is invalid");
        let mut said: Vec<String> = Vec::new();
        for text in causes.iter().map(Cause::to_string) {
            if !said.contains(&text) {
                said.push(text);
            }
        }
        match said.as_slice() {
            [] => {}
            [one] => message += &format!(": {one}"),
            many => message += &format!(": [{}]", many.join(", ")),
        }
        let mut status = Self::about(Reason::Invalid, kind, name, message);
        status.details.kind = kind.kind.to_owned();
        status.details.causes = causes;
        status
    }

    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", kind.resource())
        } else {
            format!("{} \"{name}\" is forbidden: {why}", kind.resource())
        };
        Self::about(Reason::Forbidden, kind, name, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn bad_request(why: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, why)
    }

    /// `action` is the verb that the resource does not support, such as `create`.
    pub fn method_not_allowed(kind: &Kind, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind \"{}\"", kind.resource());
        Self::about(Reason::MethodNotAllowed, kind, "", message)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(Reason::NotAcceptable, message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(Reason::UnsupportedMediaType, message)
    }

    /// The revision asked for has been compacted away.
    pub fn expired(why: impl Into<String>) -> Self {
        Self::new(Reason::Expired, why)
    }

    pub fn gone(why: impl Into<String>) -> Self {
        Self::new(Reason::Gone, why)
    }

    pub fn too_many_requests(why: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(Reason::TooManyRequests, why).retry_after(retry_after_seconds)
    }

    /// The operation did not finish in time; it may still happen.
    pub fn timeout(why: impl Into<String>, retry_after_seconds: u32) -> Self {
        let message = format!("Timeout: {}", why.into());
        Self::new(Reason::Timeout, message).retry_after(retry_after_seconds)
    }

    /// A list or watch asked for a revision that does not exist yet.
    pub fn revision_too_large(asked: u64, current: u64, retry_after_seconds: u32) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::timeout(message, retry_after_seconds);
        status.details.causes.push(Cause {
            reason: CauseReason::ResourceVersionTooLarge,
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    pub fn service_unavailable(why: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, why)
    }

    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {why}"))
    }

    pub fn request_entity_too_large(limit: usize) -> Self {
        Self::new(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {limit}"))
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.retry_after_seconds = Some(seconds);
        self
    }

    /// The `v1.Status` object.
    pub fn to_json(&self) -> Value {
        // `details` is always there, if empty: some clients look into it without asking.
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code, "details": self.details.to_json(),
        })
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// The answer to a delete that removed the object at once.
pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
    let details = Details { uid: uid.to_owned(), ..Details::of(kind, name) };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_json()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::by_plural;

    fn cause(reason: CauseReason, field: &str, message: &str) -> Cause {
        Cause { reason, message: message.to_owned(), field: field.to_owned() }
    }

    #[test]
    fn messages_are_those_that_clients_know() {
        let pods = by_plural("", "v1", "pods").expect("pods are served");
        let deployments = by_plural("apps", "v1", "deployments").expect("deployments are served");
        let a = cause(CauseReason::FieldValueRequired, "spec.a", "Required value");
        let b = cause(CauseReason::FieldValueInvalid, "spec.b", "Invalid value: 1");
        let table = [
            (Status::not_found(pods, "x"), 404, "pods \"x\" not found"),
            (Status::not_found(deployments, "x"), 404, "deployments.apps \"x\" not found"),
            (Status::already_exists(pods, "x"), 409, "pods \"x\" already exists"),
            (
                Status::conflict(pods, "x"),
                409,
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes \
                 to the latest version and try again",
            ),
            (Status::invalid(pods, "x", vec![a.clone()]), 422, "Pod \"x\" is invalid: spec.a: Required value"),
            (
                Status::invalid(deployments, "x", vec![a, b]),
                422,
                "Deployment.apps \"x\" is invalid: [spec.a: Required value, spec.b: Invalid value: 1]",
            ),
            (Status::unauthorized(), 401, "Unauthorized"),
        ];
        for (status, code, message) in table {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn json_carries_the_details() {
        let pods = by_plural("", "v1", "pods").expect("pods are served");
        let causes = vec![cause(CauseReason::FieldValueRequired, "spec.a", "Required value")];
        let shown = Status::invalid(pods, "x", causes).to_json();
        assert_eq!(
            shown["details"],
            json!({"name": "x", "kind": "Pod", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.a"}]})
        );
        assert_eq!(shown["reason"], "Invalid");
        let busy = Status::too_many_requests("busy", 3).to_json();
        assert_eq!(busy["details"], json!({"retryAfterSeconds": 3}));
        assert_eq!(deleted(pods, "x", "u")["details"]["uid"], "u");
    }
}
