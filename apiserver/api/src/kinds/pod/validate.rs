//! What is wrong with a pod's spec as a whole.

use serde_json::Value;

use super::{containers, scheduling, volumes};
use crate::{
    field::{Errors, Path, int, is_true, items, some_text, text},
    kinds::object_meta,
    names,
};

/// Checks a pod spec, that of a pod or of a template.
pub fn spec(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    volumes::validate(errors, path, spec);
    containers::validate(errors, path, spec);
    policies(errors, path, spec);
    dns(errors, path, spec);
    identity(errors, path, spec);
    security(errors, &path.child("securityContext"), spec.get("securityContext").unwrap_or(&Value::Null));
    scheduling::validate(errors, path, spec);
    host_aliases(errors, &path.child("hostAliases"), spec);
    for (key, subject) in [("imagePullSecrets", "name"), ("resourceClaims", "name")] {
        let list = path.child(key);
        for (index, each) in items(spec, key).iter().enumerate() {
            if text(each, subject).is_empty() {
                errors.required(&list.index(index).child(subject), "");
            }
        }
    }
    if is_true(spec, "hostPID") && is_true(spec, "shareProcessNamespace") {
        errors.invalid(&path.child("shareProcessNamespace"), &true.into(), "may not be set together with hostPID");
    }
}

fn policies(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let at = path.child("restartPolicy");
    match some_text(spec, "restartPolicy") {
        None => errors.required(&at, ""),
        policy => errors.one_of(&at, policy, &["Always", "OnFailure", "Never"]),
    }
    if let Some(seconds) = int(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = "must be between 1 and 2147483647";
        errors.invalid(&path.child("activeDeadlineSeconds"), &seconds.into(), detail);
    }
    let preemption = some_text(spec, "preemptionPolicy");
    errors.one_of(&path.child("preemptionPolicy"), preemption, &["PreemptLowerPriority", "Never"]);
    let os = spec.get("os").unwrap_or(&Value::Null);
    errors.one_of(&path.child("os").child("name"), some_text(os, "name"), &["linux", "windows"]);
}

fn dns(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let at = path.child("dnsPolicy");
    let policy = text(spec, "dnsPolicy");
    match policy {
        "" => errors.required(&at, ""),
        _ => errors.one_of(&at, Some(policy), &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]),
    }
    let config = spec.get("dnsConfig").unwrap_or(&Value::Null);
    let at = path.child("dnsConfig");
    let servers = items(config, "nameservers");
    if policy == "None" && spec.get("dnsConfig").is_none() {
        errors.required(&at, "must be set when `dnsPolicy` is None");
    } else if policy == "None" && servers.is_empty() {
        errors.required(&at.child("nameservers"), "must name a server when `dnsPolicy` is None");
    }
    const MAX_SERVERS: usize = 3;
    if servers.len() > MAX_SERVERS {
        errors.too_many(&at.child("nameservers"), servers.len(), MAX_SERVERS);
    }
    let list = at.child("nameservers");
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        errors.complaints(&list.index(index), server, names::ip(server));
    }
    let list = at.child("options");
    for (index, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(&list.index(index), "must have a name");
        }
    }
}

fn identity(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let rules: [(&str, names::Rule); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
    ];
    for (key, rule) in rules {
        if let Some(name) = some_text(spec, key) {
            errors.complaints(&path.child(key), name, rule(name));
        }
    }
    object_meta::label_map(errors, &path.child("nodeSelector"), spec, "nodeSelector");
}

fn security(errors: &mut Errors, at: &Path<'_>, context: &Value) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        errors.not_negative(&at.child(key), int(context, key));
    }
    let list = at.child("supplementalGroups");
    for (index, group) in items(context, "supplementalGroups").iter().enumerate() {
        errors.not_negative(&list.index(index), group.as_i64());
    }
    let policy = some_text(context, "fsGroupChangePolicy");
    errors.one_of(&at.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    let list = at.child("sysctls");
    for (index, sysctl) in items(context, "sysctls").iter().enumerate() {
        let name = text(sysctl, "name");
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_./".contains(&b);
        let at = list.index(index);
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else if !name.bytes().all(fine) {
            errors.invalid_str(&at.child("name"), name, "must be lower-case names joined by '.' or '/'");
        }
    }
}

fn host_aliases(errors: &mut Errors, list: &Path<'_>, spec: &Value) {
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let at = list.index(index);
        let ip = text(alias, "ip");
        errors.complaints(&at.child("ip"), ip, names::ip(ip));
        let hosts = at.child("hostnames");
        for (index, host) in items(alias, "hostnames").iter().enumerate() {
            let host = host.as_str().unwrap_or_default();
            errors.complaints(&hosts.index(index), host, names::dns1123_subdomain(host));
        }
    }
}

/// Checks a template: its labels, its spec, and that it makes pods of the one restart policy that replicas allow.
pub fn template(errors: &mut Errors, path: &Path<'_>, template: &Value) {
    let meta = template.get("metadata").unwrap_or(&Value::Null);
    let at = path.child("metadata");
    object_meta::labels(errors, &at.child("labels"), meta);
    object_meta::annotations(errors, &at.child("annotations"), meta);
    let at = path.child("spec");
    let pod_spec = template.get("spec").unwrap_or(&Value::Null);
    spec(errors, &at, pod_spec);
    match text(pod_spec, "restartPolicy") {
        "" | "Always" => {}
        policy => errors.not_supported(&at.child("restartPolicy"), policy, &["Always"]),
    }
    if pod_spec.get("activeDeadlineSeconds").is_some() {
        errors.forbidden(&at.child("activeDeadlineSeconds"), "replicas run without an end");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::pod::defaults;

    fn found(mut pod_spec: Value) -> Vec<String> {
        defaults::template(&mut pod_spec);
        let mut errors = Errors::new();
        spec(&mut errors, &Path::root("spec"), &pod_spec);
        errors.0.iter().map(ToString::to_string).collect()
    }

    /// A pod of one container with these further fields.
    fn with(container: Value) -> Value {
        let mut full = json!({"name": "c", "image": "i"});
        for (key, value) in container.as_object().expect("fields") {
            full[key] = value.clone();
        }
        json!({"containers": [full], "volumes": [{"name": "v"}]})
    }

    #[test]
    fn good_pods_pass() {
        let rich = json!({"ports": [{"containerPort": 80, "name": "http"}], "env": [{"name": "A", "value": "b"},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1", "x.io/gpu": "1"}},
            "livenessProbe": {"httpGet": {"port": "http"}}});
        assert_eq!(found(with(rich)), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_named() {
        let table = [
            (json!({}), "spec.containers: Required value"),
            (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image: Required value"),
            (
                json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
                "spec.containers[1].name: Duplicate value: \"c\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Maybe"}),
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                with(json!({"ports": [{"containerPort": 70000}]})),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535",
            ),
            (
                with(json!({"volumeMounts": [{"name": "x", "mountPath": "/v"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
            ),
            (
                with(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must not exceed the cpu limit of 1",
            ),
            (
                with(json!({"resources": {"requests": {"memory": "-1"}}})),
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                with(json!({"livenessProbe": {"periodSeconds": 1}})),
                "spec.containers[0].livenessProbe: Required value: a probe or hook has a handler",
            ),
            (
                with(json!({"livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}})),
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: a probe or hook has one handler",
            ),
            (
                with(json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}})),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                with(json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]})),
                "spec.containers[0].env[0].valueFrom.secretKeyRef.key: Required value",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "secret": {}}]}),
                "spec.volumes[0].secret.secretName: Required value",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}],
                    "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/a"}}]}),
                "spec.volumes[0].hostPath: Forbidden: a volume has one type",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}], "tolerations": [{"operator": "Is", "key": "k"}]}),
                "spec.tolerations[0].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "i"}],
                    "initContainers": [{"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["a"]}}}]}),
                "spec.initContainers[0].readinessProbe: Forbidden: an init container that does not restart always has none",
            ),
        ];
        for (given, expected) in table {
            assert_eq!(found(given.clone()), [expected], "{given}");
        }
    }
}
