//! The quality-of-service class, derived from requests and limits.

use k8s_openapi::api::core::v1::{Container, Pod};

use api::quantity;

pub fn class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let all: Vec<&Container> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    let amount = |container: &Container, limits: bool, name: &str| {
        let resources = container.resources.as_ref()?;
        let map = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() };
        map?.get(name).map(quantity::milli).filter(|n| *n > 0)
    };
    let any = all.iter().any(|c| {
        ["cpu", "memory"].iter().any(|name| amount(c, true, name).is_some() || amount(c, false, name).is_some())
    });
    // A request that is missing is defaulted to the limit by the API server; be as generous here.
    let guaranteed = all.iter().all(|c| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = amount(c, true, name);
            limit.is_some() && amount(c, false, name).is_none_or(|request| Some(request) == limit)
        })
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_follows_requests_and_limits() {
        let pod = |resources: serde_json::Value| -> Pod {
            let value = serde_json::json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            serde_json::from_value(value).expect("a pod")
        };
        let table = [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "1"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}}),
                "Burstable",
            ),
        ];
        for (resources, expected) in table {
            assert_eq!(class(&pod(resources.clone())), expected, "{resources}");
        }
    }
}
