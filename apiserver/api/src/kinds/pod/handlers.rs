//! What is wrong with probes and with what runs around a container's life.

use serde_json::Value;

use crate::{
    field::{Errors, Path, int, items, some_text, text},
    names,
};

const PROBE: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
pub const LIFECYCLE: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

pub fn probe(errors: &mut Errors, at: &Path<'_>, probe: &Value) {
    handler(errors, at, probe, PROBE);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.not_negative(&at.child(key), int(probe, key));
    }
    if let Some(seconds) = int(probe, "terminationGracePeriodSeconds")
        && seconds <= 0
    {
        errors.invalid(&at.child("terminationGracePeriodSeconds"), &seconds.into(), "must be greater than 0");
    }
}

/// One action, out of those that `kinds` names.
pub fn handler(errors: &mut Errors, at: &Path<'_>, handler: &Value, kinds: &[&str]) {
    let found: Vec<&str> = kinds.iter().copied().filter(|kind| handler.get(*kind).is_some()).collect();
    if found.is_empty() {
        errors.required(at, "a probe or hook has a handler");
    }
    for extra in found.iter().skip(1) {
        errors.forbidden(&at.child(extra), "a probe or hook has one handler");
    }
    let Some(kind) = found.first() else { return };
    let (at, action) = (at.child(kind), &handler[*kind]);
    match *kind {
        "exec" => {
            if items(action, "command").is_empty() {
                errors.required(&at.child("command"), "");
            }
        }
        "httpGet" => http_get(errors, &at, action),
        "tcpSocket" | "grpc" => port(errors, &at.child("port"), action),
        _ => errors.not_negative(&at.child("seconds"), int(action, "seconds")),
    }
}

fn http_get(errors: &mut Errors, at: &Path<'_>, action: &Value) {
    if text(action, "path").is_empty() {
        errors.required(&at.child("path"), "");
    }
    port(errors, &at.child("port"), action);
    errors.one_of(&at.child("scheme"), some_text(action, "scheme"), &["HTTP", "HTTPS"]);
    let list = at.child("httpHeaders");
    for (index, header) in items(action, "httpHeaders").iter().enumerate() {
        let name = text(header, "name");
        let fine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !fine {
            errors.invalid_str(&list.index(index).child("name"), name, "must be letters, digits, '-' and '_'");
        }
    }
}

/// A number, or the name of one of the container's ports.
fn port(errors: &mut Errors, at: &Path<'_>, action: &Value) {
    match action.get("port") {
        Some(Value::String(name)) => errors.complaints(at, name, names::port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            for complaint in names::port_number(number) {
                errors.invalid(at, &number.into(), &complaint);
            }
        }
    }
}
