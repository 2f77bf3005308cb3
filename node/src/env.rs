//! A container's environment, and the fields of a pod that environment and volumes can show. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{
        ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Service,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use api::quantity;

/// Everything that a pod's configuration can refer to, fetched beforehand. None: the object does not exist.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
    pub services: Vec<Arc<Service>>,
    /// Tokens for projected volumes by (audience, seconds); empty where the API offers none.
    pub tokens: HashMap<TokenKey, String>,
    pub node: NodeView,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TokenKey {
    pub audience: Option<String>,
    pub expiration_seconds: i64,
}

/// What a pod may learn about its node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub ips: Vec<String>,
    /// Stands in for a limit that a container does not have.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The configuration of a container cannot be put together; the text names the missing piece.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Variables in the order of their first mention; a later value replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// A container's variables: services, then `envFrom`, then `env`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    pod_ips: &[String],
) -> Result<Environment, ConfigError> {
    let mut env = Environment::default();
    for (name, value) in service_variables(pod, &sources.services) {
        env.set(name, value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(wanted) = &source.config_map_ref {
            let map = config_map(sources, &wanted.name, wanted.optional)?;
            for (key, value) in map.iter().flat_map(|m| m.data.iter().flatten()) {
                env.set(format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(wanted) = &source.secret_ref {
            let secret = secret(sources, &wanted.name, wanted.optional)?;
            for (key, value) in secret.iter().flat_map(|s| s.data.iter().flatten()) {
                env.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                Some(expand(variable.value.as_deref().unwrap_or_default(), |name| env.get(name).map(str::to_owned)))
            }
            Some(from) => referenced(pod, container, from, sources, pod_ips)?,
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env)
}

fn config_map(sources: &Sources, name: &str, optional: Option<bool>) -> Result<Option<Arc<ConfigMap>>, ConfigError> {
    match sources.config_maps.get(name).cloned().flatten() {
        None if optional != Some(true) => Err(ConfigError(format!("configmap {name:?} not found"))),
        found => Ok(found),
    }
}

fn secret(sources: &Sources, name: &str, optional: Option<bool>) -> Result<Option<Arc<Secret>>, ConfigError> {
    match sources.secrets.get(name).cloned().flatten() {
        None if optional != Some(true) => Err(ConfigError(format!("secret {name:?} not found"))),
        found => Ok(found),
    }
}

fn referenced(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    pod_ips: &[String],
) -> Result<Option<String>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return field_value(pod, field, &sources.node, pod_ips).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_value(pod, container, resource, &sources.node).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        let map = config_map(sources, &key.name, key.optional)?;
        let value = map.and_then(|m| m.data.as_ref().and_then(|d| d.get(&key.key)).cloned());
        if value.is_none() && key.optional != Some(true) {
            let (key, name) = (&key.key, &key.name);
            return Err(ConfigError(format!("couldn't find key {key} in ConfigMap {namespace}/{name}")));
        }
        return Ok(value);
    }
    if let Some(key) = &from.secret_key_ref {
        let secret = secret(sources, &key.name, key.optional)?;
        let value = secret.and_then(|s| s.data.as_ref().and_then(|d| d.get(&key.key)).cloned());
        if value.is_none() && key.optional != Some(true) {
            let (key, name) = (&key.key, &key.name);
            return Err(ConfigError(format!("couldn't find key {key} in Secret {namespace}/{name}")));
        }
        return Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned()));
    }
    Err(ConfigError("an environment variable's valueFrom names no source that this node knows".to_owned()))
}

/// The value of a pod's field, as environment variables and downward API files see it.
pub fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    node: &NodeView,
    pod_ips: &[String],
) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    let path = field.field_path.as_str();
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.hostIP" => text(node.ips.first()),
        "status.hostIPs" => Ok(node.ips.join(",")),
        "status.podIP" => text(pod_ips.first()),
        "status.podIPs" => Ok(pod_ips.join(",")),
        _ => {
            let of = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
            let pick = |map: Option<&BTreeMap<String, String>>, key: &str| text(map.and_then(|m| m.get(key)));
            match (of("metadata.labels['"), of("metadata.annotations['")) {
                (Some(key), _) => pick(meta.labels.as_ref(), key),
                (None, Some(key)) => pick(meta.annotations.as_ref(), key),
                (None, None) => Err(ConfigError(format!("field {path:?} of a pod cannot be referred to"))),
            }
        }
    }
}

/// Labels or annotations, one `key="value"` a line.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A container's request or limit, divided and rounded up.
pub fn resource_value(
    pod: &Pod,
    own: &Container,
    field: &ResourceFieldSelector,
    node: &NodeView,
) -> Result<String, ConfigError> {
    let spec = pod.spec.as_ref();
    let mut all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let container = match &field.container_name {
        Some(name) if *name != own.name => {
            all.find(|c| c.name == *name).ok_or_else(|| ConfigError(format!("container {name} not found")))?
        }
        Some(_) | None => own,
    };
    let Some((kind, resource)) = field.resource.split_once('.') else {
        return Err(ConfigError(format!("resource {:?} cannot be referred to", field.resource)));
    };
    let resources = container.resources.as_ref();
    let amount = match kind {
        "limits" => resources
            .and_then(|r| r.limits.as_ref())
            .and_then(|l| l.get(resource))
            .or_else(|| node.allocatable.get(resource)),
        "requests" => resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(resource)),
        _ => return Err(ConfigError(format!("resource {:?} cannot be referred to", field.resource))),
    };
    let one = Quantity("1".to_owned());
    let divisor = field.divisor.as_ref().unwrap_or(&one);
    let value = amount.map_or(0, |amount| quantity::divided(amount, divisor));
    Ok(value.to_string())
}

/// Replaces `$(NAME)`; `$$` is a dollar, and a name that is not known stays as it is written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `X_SERVICE_HOST` and its relatives, for the services of the pod's namespace and for the API itself.
fn service_variables(pod: &Pod, services: &[Arc<Service>]) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut out = Vec::new();
    for service in services {
        let (name, home) = (service.metadata.name.as_deref(), service.metadata.namespace.as_deref());
        let api = name == Some("kubernetes") && home == Some("default");
        if !(api || (links && home == Some(namespace))) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let prefix = upper(name.unwrap_or_default());
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
            }
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            let base = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            if index == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            out.push((base.clone(), url));
            out.push((format!("{base}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{base}_PORT"), port.port.to_string()));
            out.push((format!("{base}_ADDR"), ip.to_owned()));
        }
    }
    out
}

/// Names of the config maps and secrets that containers' environments refer to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "n1", "containers": [container]},
        }))
        .expect("a pod")
    }

    fn sources() -> Sources {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"a": "1", "b": "2"}})).expect("a config map");
        let secret: Secret = serde_json::from_value(json!({"data": {"pw": "c2VjcmV0"}})).expect("a secret");
        let service = |name: &str, namespace: &str, ip: &str| -> Arc<Service> {
            let value = json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}]},
            });
            Arc::new(serde_json::from_value(value).expect("a service"))
        };
        Sources {
            config_maps: [("cm".to_owned(), Some(Arc::new(map))), ("gone".to_owned(), None)].into(),
            secrets: [("sec".to_owned(), Some(Arc::new(secret)))].into(),
            services: vec![
                service("web-app", "ns", "10.96.0.7"),
                service("other", "elsewhere", "10.96.0.8"),
                service("headless", "ns", "None"),
                service("kubernetes", "default", "10.96.0.1"),
            ],
            node: NodeView {
                ips: vec!["192.0.2.1".to_owned()],
                allocatable: [("cpu".to_owned(), Quantity("2".to_owned()))].into(),
            },
            ..Sources::default()
        }
    }

    fn value(env: serde_json::Value) -> Result<Option<String>, ConfigError> {
        let pod = pod(json!({"name": "c", "env": env, "resources": {"requests": {"memory": "64Mi"}}}));
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        environment(&pod, container, &sources(), &["10.244.1.2".to_owned()]).map(|e| e.get("V").map(str::to_owned))
    }

    #[test]
    fn values_from_every_source() {
        let from = |source: serde_json::Value| json!([{"name": "V", "valueFrom": source}]);
        let table = [
            (json!([{"name": "V", "value": "x"}]), Some("x")),
            (json!([{"name": "A", "value": "1"}, {"name": "V", "value": "$(A)-$(B)-$$(A)"}]), Some("1-$(B)-$(A)")),
            (json!([{"name": "V", "value": "$(WEB_APP_SERVICE_HOST)"}]), Some("10.96.0.7")),
            (json!([{"name": "V", "value": "$(KUBERNETES_PORT_53_UDP)"}]), Some("udp://10.96.0.1:53")),
            (json!([{"name": "V", "value": "$(OTHER_SERVICE_HOST)"}]), Some("$(OTHER_SERVICE_HOST)")),
            (from(json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}})), Some("x")),
            (from(json!({"fieldRef": {"fieldPath": "status.podIP"}})), Some("10.244.1.2")),
            (from(json!({"fieldRef": {"fieldPath": "status.hostIP"}})), Some("192.0.2.1")),
            (from(json!({"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}})), Some("64")),
            (from(json!({"resourceFieldRef": {"resource": "limits.cpu"}})), Some("2")),
            (from(json!({"configMapKeyRef": {"name": "cm", "key": "b"}})), Some("2")),
            (from(json!({"configMapKeyRef": {"name": "gone", "key": "b", "optional": true}})), None),
            (from(json!({"secretKeyRef": {"name": "sec", "key": "pw"}})), Some("secret")),
        ];
        for (env, expected) in table {
            assert_eq!(value(env.clone()), Ok(expected.map(str::to_owned)), "{env}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let from = |source: serde_json::Value| json!([{"name": "V", "valueFrom": source}]);
        let table = [
            (from(json!({"configMapKeyRef": {"name": "gone", "key": "b"}})), "configmap \"gone\" not found"),
            (from(json!({"configMapKeyRef": {"name": "cm", "key": "z"}})), "couldn't find key z in ConfigMap ns/cm"),
            (from(json!({"secretKeyRef": {"name": "sec", "key": "z"}})), "couldn't find key z in Secret ns/sec"),
            (from(json!({"secretKeyRef": {"name": "nil", "key": "z"}})), "secret \"nil\" not found"),
        ];
        for (env, expected) in table {
            assert_eq!(value(env), Err(ConfigError(expected.to_owned())));
        }
    }

    #[test]
    fn env_from_takes_a_prefix() {
        let pod = pod(json!({"name": "c", "envFrom": [
            {"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}},
        ]}));
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        let env = environment(&pod, container, &Sources { services: Vec::new(), ..sources() }, &[]).expect("env");
        let pairs: Vec<String> = env.into_pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["P_a=1", "P_b=2", "pw=secret"]);
        assert_eq!(references(container), (vec!["cm".to_owned()], vec!["sec".to_owned()]));
    }
}
