//! What a pod, and the pod of a template, gets where the client said nothing.

use serde_json::{Map, Value, json};

use crate::field::{int, is_true, items_mut, object_mut, set_default, set_default_text, some_text, text};

/// Mode of the files of a config map, a secret and the like: `rw-r--r--`.
const FILE_MODE: i64 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

/// Defaults of a pod itself.
pub fn pod(object: &mut Value) {
    let spec = object_mut(object, "spec");
    template(spec);
    set_default(spec, "enableServiceLinks", true);
    let host_network = is_true(spec, "hostNetwork");
    for key in ["containers", "initContainers"] {
        for container in items_mut(spec, key) {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
}

/// Defaults of the pod spec of a template; those of [`pod`] beyond it come when the pod is made.
pub fn template(spec: &mut Value) {
    set_default_text(spec, "dnsPolicy", "ClusterFirst");
    set_default_text(spec, "restartPolicy", "Always");
    set_default_text(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "securityContext", Map::new());
    service_account(spec);
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, key).iter_mut().for_each(container);
    }
    items_mut(spec, "volumes").iter_mut().for_each(volume);
}

/// The old name of the field goes along with the new one.
pub fn service_account(spec: &mut Value) {
    let account = some_text(spec, "serviceAccountName").or(some_text(spec, "serviceAccount")).map(str::to_owned);
    if let Some(account) = account {
        spec["serviceAccountName"] = account.as_str().into();
        spec["serviceAccount"] = account.into();
    }
}

fn container(container: &mut Value) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        set_default_text(container, "imagePullPolicy", policy);
    }
    set_default_text(container, "terminationMessagePath", "/dev/termination-log");
    set_default_text(container, "terminationMessagePolicy", "File");
    set_default(container, "resources", Map::new());
    for port in items_mut(container, "ports") {
        set_default_text(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            downward(source);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get_mut(key) {
            probe(found);
        }
    }
    for pointer in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(found) = container.pointer_mut(pointer) {
            http_get(found);
        }
    }
}

/// An image without a tag, or with the tag `latest`, may change under its name.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    for (key, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if int(probe, key).unwrap_or_default() == 0 {
            probe[key] = default.into();
        }
    }
    if let Some(found) = probe.get_mut("httpGet") {
        http_get(found);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        set_default(grpc, "service", "");
    }
}

fn http_get(action: &mut Value) {
    set_default_text(action, "path", "/");
    set_default_text(action, "scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    let Some(fields) = volume.as_object_mut() else { return };
    if fields.keys().all(|key| key == "name") {
        fields.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = fields.get_mut(key) {
            set_default(source, "defaultMode", FILE_MODE);
            field_refs(source);
        }
    }
    if let Some(source) = fields.get_mut("hostPath") {
        set_default(source, "type", "");
    }
    if let Some(source) = fields.get_mut("image")
        && text(source, "pullPolicy").is_empty()
    {
        let policy = pull_policy(text(source, "reference"));
        source["pullPolicy"] = policy.into();
    }
    let Some(projected) = fields.get_mut("projected") else { return };
    for source in items_mut(projected, "sources") {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            set_default(token, "expirationSeconds", TOKEN_SECONDS);
        }
        if let Some(downward) = source.get_mut("downwardAPI") {
            field_refs(downward);
        }
    }
}

fn field_refs(source: &mut Value) {
    for item in items_mut(source, "items") {
        downward(item);
    }
}

/// A reference to the pod's own fields.
fn downward(source: &mut Value) {
    if let Some(field) = source.get_mut("fieldRef") {
        set_default_text(field, "apiVersion", "v1");
    }
    if let Some(resource) = source.get_mut("resourceFieldRef") {
        set_default_text(resource, "divisor", "0");
    }
}

/// Who names a limit and no request asks for as much as the limit.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else { return };
    let requests = object_mut(&mut container["resources"], "requests");
    for (resource, limit) in limits {
        set_default(requests, &resource, limit);
    }
}

/// In the host's network a port is the host's port.
fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if int(port, "hostPort").unwrap_or_default() == 0 {
            port["hostPort"] = port.get("containerPort").cloned().unwrap_or_else(|| json!(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pod_is_filled_in() {
        let mut object = json!({"spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}},
            "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 2}}],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "x"}}, {"name": "h", "hostPath": {"path": "/"}}]}});
        pod(&mut object);
        let expected = json!({"spec": {
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi", "cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 2,
                    "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true}});
        assert_eq!(object, expected);
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once, "idempotent");
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        let table = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ];
        for (image, policy) in table {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_template_leaves_the_pod_s_own_defaults_to_the_pod() {
        let mut spec = json!({"hostNetwork": true, "serviceAccount": "x",
            "containers": [{"name": "c", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]});
        let mut object = json!({"spec": spec});
        template(&mut spec);
        assert_eq!(spec.get("enableServiceLinks"), None);
        assert_eq!(spec["serviceAccountName"], "x");
        assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
        pod(&mut object);
        assert_eq!(object["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    }
}
