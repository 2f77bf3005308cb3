//! What is wrong with the containers of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::handlers;
use crate::{
    field::{Errors, Path, int, is_true, items, some_text, text},
    names,
    quantity::Quantity,
};

/// Which of a pod's lists a container stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    /// Runs to its end before the main ones start.
    Init,
    /// An init container that keeps running.
    Sidecar,
}

/// What the containers of a pod share.
#[derive(Default)]
struct Seen<'v> {
    names: HashSet<&'v str>,
    host_ports: HashSet<String>,
}

pub fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let volumes: HashSet<&str> = items(spec, "volumes").iter().map(|volume| text(volume, "name")).collect();
    let host_network = is_true(spec, "hostNetwork");
    let mut seen = Seen::default();
    if items(spec, "containers").is_empty() {
        errors.required(&path.child("containers"), "");
    }
    for key in ["containers", "initContainers"] {
        let list = path.child(key);
        for (index, container) in items(spec, key).iter().enumerate() {
            let at = list.index(index);
            let role = match (key, text(container, "restartPolicy")) {
                ("containers", _) => Role::Main,
                (_, "Always") => Role::Sidecar,
                _ => Role::Init,
            };
            identity(errors, &at, container, &mut seen);
            ports(errors, &at.child("ports"), container, host_network, &mut seen);
            environment(errors, &at, container);
            mounts(errors, &at, container, &volumes);
            resources(errors, &at.child("resources"), &container["resources"]);
            probes(errors, &at, container, role);
            security(errors, &at.child("securityContext"), &container["securityContext"]);
        }
    }
}

fn identity<'v>(errors: &mut Errors, at: &Path<'_>, container: &'v Value, seen: &mut Seen<'v>) {
    let name_at = at.child("name");
    match some_text(container, "name") {
        None => errors.required(&name_at, ""),
        Some(name) => {
            errors.complaints(&name_at, name, names::dns1123_label(name));
            if !seen.names.insert(name) {
                errors.duplicate(&name_at, &name.into());
            }
        }
    }
    let image = text(container, "image");
    if image.is_empty() {
        errors.required(&at.child("image"), "");
    } else if image.trim() != image {
        errors.invalid_str(&at.child("image"), image, "must not begin or end with white space");
    }
    let supported: [(&str, &[&str]); 3] = [
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
        ("terminationMessagePolicy", &["File", "FallbackToLogsOnError"]),
        ("restartPolicy", &["Always", "OnFailure", "Never"]),
    ];
    for (key, values) in supported {
        errors.one_of(&at.child(key), some_text(container, key), values);
    }
}

fn ports<'v>(errors: &mut Errors, list: &Path<'_>, container: &'v Value, host_network: bool, seen: &mut Seen<'v>) {
    let mut port_names = HashSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let at = list.index(index);
        if let Some(name) = some_text(port, "name") {
            errors.complaints(&at.child("name"), name, names::port_name(name));
            if !port_names.insert(name) {
                errors.duplicate(&at.child("name"), &name.into());
            }
        }
        let number = int(port, "containerPort").unwrap_or_default();
        if number == 0 {
            errors.required(&at.child("containerPort"), "");
        }
        port_range(errors, &at.child("containerPort"), number);
        let host_port = int(port, "hostPort").unwrap_or_default();
        port_range(errors, &at.child("hostPort"), host_port);
        let protocol = text(port, "protocol");
        protocol_known(errors, &at.child("protocol"), protocol);
        if let Some(ip) = some_text(port, "hostIP") {
            errors.complaints(&at.child("hostIP"), ip, names::ip(ip));
        }
        if host_port == 0 {
            continue;
        }
        if host_network && host_port != number {
            let detail = "must equal hostPort in the network of the host";
            errors.invalid(&at.child("containerPort"), &number.into(), detail);
        }
        let claim = format!("{protocol}/{}/{host_port}", text(port, "hostIP"));
        if !seen.host_ports.insert(claim.clone()) {
            errors.duplicate(&at.child("hostPort"), &claim.into());
        }
    }
}

fn port_range(errors: &mut Errors, at: &Path<'_>, port: i64) {
    if port != 0 {
        for complaint in names::port_number(port) {
            errors.invalid(at, &port.into(), &complaint);
        }
    }
}

pub fn protocol_known(errors: &mut Errors, at: &Path<'_>, protocol: &str) {
    if protocol.is_empty() {
        errors.required(at, "");
    }
    errors.one_of(at, Some(protocol).filter(|p| !p.is_empty()), &["TCP", "UDP", "SCTP"]);
}

fn environment(errors: &mut Errors, at: &Path<'_>, container: &Value) {
    let list = at.child("env");
    for (index, variable) in items(container, "env").iter().enumerate() {
        let at = list.index(index);
        match some_text(variable, "name") {
            None => errors.required(&at.child("name"), ""),
            Some(name) => errors.complaints(&at.child("name"), name, names::env_name(name)),
        }
        let Some(source) = variable.get("valueFrom") else { continue };
        let at = at.child("valueFrom");
        if some_text(variable, "value").is_some() {
            errors.invalid_str(&at, "", "excludes a `value` that is not empty");
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        match sources.iter().filter(|key| source.get(**key).is_some()).count() {
            0 => errors.invalid_str(&at, "", "must specify exactly one source of the value"),
            1 => {}
            _ => errors.invalid_str(&at, "", "may not have more than one source of the value"),
        }
        value_source(errors, &at, source);
    }
    let list = at.child("envFrom");
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        let at = list.index(index);
        if let Some(prefix) = some_text(source, "prefix") {
            errors.complaints(&at.child("prefix"), prefix, names::env_name(prefix));
        }
        let found: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|key| source.get(*key).is_some()).collect();
        match found.as_slice() {
            [key] => reference_name(errors, &at.child(key).child("name"), &source[*key]),
            [] => errors.invalid_str(&at, "", "must have `configMapRef` or `secretRef`"),
            _ => errors.invalid_str(&at, "", "may not have both `configMapRef` and `secretRef`"),
        }
    }
}

fn value_source(errors: &mut Errors, at: &Path<'_>, source: &Value) {
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let Some(reference) = source.get(key) else { continue };
        let at = at.child(key);
        reference_name(errors, &at.child("name"), reference);
        match some_text(reference, "key") {
            None => errors.required(&at.child("key"), ""),
            Some(key) => errors.complaints(&at.child("key"), key, names::config_key(key)),
        }
    }
    if let Some(field) = source.get("fieldRef") {
        downward_field(errors, &at.child("fieldRef"), field, ENVIRONMENT_FIELDS);
    }
    if let Some(reference) = source.get("resourceFieldRef") {
        downward_resource(errors, &at.child("resourceFieldRef"), reference);
    }
}

/// The fields that an environment variable may show.
const ENVIRONMENT_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A reference to a field of the pod, one of `supported` or one label or annotation.
pub fn downward_field(errors: &mut Errors, at: &Path<'_>, reference: &Value, supported: &[&str]) {
    let path_at = at.child("fieldPath");
    let Some(path) = some_text(reference, "fieldPath") else { return errors.required(&path_at, "") };
    let subscript = ["metadata.labels['", "metadata.annotations['"].iter().find_map(|p| path.strip_prefix(p));
    match subscript.and_then(|rest| rest.strip_suffix("']")) {
        Some(key) => errors.complaints(&path_at, key, names::qualified_name(&key.to_lowercase())),
        None if supported.contains(&path) => {}
        None => errors.invalid_str(&path_at, path, &format!("must be one of {}", supported.join(", "))),
    }
}

pub fn downward_resource(errors: &mut Errors, at: &Path<'_>, reference: &Value) {
    let resource = text(reference, "resource");
    let known = ["limits.", "requests."].iter().any(|prefix| resource.starts_with(prefix));
    if resource.is_empty() {
        errors.required(&at.child("resource"), "");
    } else if !known {
        let supported = ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
        errors.not_supported(&at.child("resource"), resource, &supported);
    }
}

/// The name of another object, which must be there and be a name.
pub fn reference_name(errors: &mut Errors, at: &Path<'_>, reference: &Value) {
    match some_text(reference, "name") {
        None => errors.required(at, ""),
        Some(name) => errors.complaints(at, name, names::dns1123_subdomain(name)),
    }
}

fn mounts(errors: &mut Errors, at: &Path<'_>, container: &Value, volumes: &HashSet<&str>) {
    let list = at.child("volumeMounts");
    let mut paths = HashSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = list.index(index);
        match some_text(mount, "name") {
            None => errors.required(&at.child("name"), ""),
            Some(name) if !volumes.contains(name) => errors.not_found(&at.child("name"), name),
            Some(_) => {}
        }
        match some_text(mount, "mountPath") {
            None => errors.required(&at.child("mountPath"), ""),
            Some(path) if !paths.insert(path) => errors.invalid_str(&at.child("mountPath"), path, "must be unique"),
            Some(_) => {}
        }
        for key in ["subPath", "subPathExpr"] {
            if let Some(path) = some_text(mount, key) {
                relative_path(errors, &at.child(key), path);
            }
        }
        if some_text(mount, "subPath").is_some() && some_text(mount, "subPathExpr").is_some() {
            let expr = text(mount, "subPathExpr");
            errors.invalid_str(&at.child("subPathExpr"), expr, "excludes subPath");
        }
        let propagation = ["None", "HostToContainer", "Bidirectional"];
        errors.one_of(&at.child("mountPropagation"), some_text(mount, "mountPropagation"), &propagation);
    }
    let list = at.child("volumeDevices");
    for (index, device) in items(container, "volumeDevices").iter().enumerate() {
        if !volumes.contains(text(device, "name")) {
            errors.not_found(&list.index(index).child("name"), text(device, "name"));
        }
    }
}

/// A path that stays inside the directory it starts from.
pub fn relative_path(errors: &mut Errors, at: &Path<'_>, path: &str) {
    if path.starts_with('/') {
        errors.invalid_str(at, path, "must be a relative path");
    }
    if path.split('/').any(|part| part == "..") {
        errors.invalid_str(at, path, "must not contain '..'");
    }
}

/// Requests and limits: sane names, nothing negative, no request above its limit.
pub fn resources(errors: &mut Errors, at: &Path<'_>, resources: &Value) {
    let amount = |part: &str, resource: &str| {
        resources.get(part)?.get(resource).and_then(|value| Quantity::from_value(value).ok())
    };
    for part in ["limits", "requests"] {
        let list = at.child(part);
        for (resource, value) in resources.get(part).and_then(Value::as_object).into_iter().flatten() {
            let at = list.key(resource);
            errors.complaints(&at, resource, names::qualified_name(resource));
            let Some(quantity) = amount(part, resource) else { continue };
            if !resource.contains('/') && !is_standard(resource) {
                errors.invalid_str(
                    &at,
                    resource,
                    "must be cpu, memory, ephemeral-storage or hugepages-*, or have a domain before a '/'",
                );
            }
            if quantity.is_negative() {
                errors.invalid(&at, value, "must be greater than or equal to 0");
            }
            if is_extended(resource) && !quantity.is_whole() {
                errors.invalid(&at, value, "must be an integer");
            }
        }
    }
    let requests = at.child("requests");
    for (resource, value) in resources.get("requests").and_then(Value::as_object).into_iter().flatten() {
        let (request, limit) = (amount("requests", resource), amount("limits", resource));
        let no_overcommit = is_extended(resource) || resource.starts_with("hugepages-");
        match (request, limit) {
            (Some(request), Some(limit)) if no_overcommit && request != limit => {
                let detail = format!("must equal the {resource} limit of {limit}");
                errors.invalid(&requests, value, &detail);
            }
            (Some(request), Some(limit)) if request > limit => {
                let detail = format!("must not exceed the {resource} limit of {limit}");
                errors.invalid(&requests, value, &detail);
            }
            (Some(_), None) if no_overcommit => {
                errors.required(&at.child("limits"), &format!("{resource} needs a limit"));
            }
            _ => {}
        }
    }
}

fn is_standard(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-")
}

/// Devices and the like: resources named with somebody's domain.
fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

fn probes(errors: &mut Errors, at: &Path<'_>, container: &Value, role: Role) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(key) else { continue };
        let at = at.child(key);
        if role == Role::Init {
            errors.forbidden(&at, "an init container that does not restart always has none");
            continue;
        }
        handlers::probe(errors, &at, probe);
        let successes = int(probe, "successThreshold").unwrap_or(1);
        if key != "readinessProbe" && successes != 1 {
            errors.invalid(&at.child("successThreshold"), &successes.into(), "must be 1");
        }
    }
    let Some(lifecycle) = container.get("lifecycle") else { return };
    let at = at.child("lifecycle");
    if role == Role::Init {
        return errors.forbidden(&at, "an init container that does not restart always has none");
    }
    for key in ["postStart", "preStop"] {
        if let Some(handler) = lifecycle.get(key) {
            handlers::handler(errors, &at.child(key), handler, handlers::LIFECYCLE);
        }
    }
}

fn security(errors: &mut Errors, at: &Path<'_>, context: &Value) {
    for key in ["runAsUser", "runAsGroup"] {
        errors.not_negative(&at.child(key), int(context, key));
    }
    if context["allowPrivilegeEscalation"] == false && is_true(context, "privileged") {
        let detail = "cannot be false when privileged is true";
        errors.invalid(&at.child("allowPrivilegeEscalation"), &false.into(), detail);
    }
    errors.one_of(&at.child("procMount"), some_text(context, "procMount"), &["Default", "Unmasked"]);
}
