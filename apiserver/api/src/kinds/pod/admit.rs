//! What the server decides about a new pod: who it is, how urgent, what it tolerates, and its first status.

use serde_json::{Value, json};

use super::defaults;
use crate::{
    field::{copy_field, items, object_mut, set_default, set_default_text, some_text, text},
    quantity::Quantity,
};

/// How long a pod stays bound to a node that is lost before it is replaced elsewhere.
const LOST_NODE_SECONDS: i64 = 300;
const LOST_NODE_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The classes that exist before anybody makes one.
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub fn new_pod(object: &mut Value) {
    let created = crate::meta::creation_timestamp(object).to_owned();
    let spec = object_mut(object, "spec");
    set_default_text(spec, "serviceAccountName", "default");
    defaults::service_account(spec);
    let class = text(spec, "priorityClassName");
    let priority = SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == class).map_or(0, |(_, priority)| *priority);
    set_default(spec, "priority", priority);
    set_default_text(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate_lost_nodes(spec);
    let gated = !items(spec, "schedulingGates").is_empty();
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(spec)});
    if gated {
        status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "lastTransitionTime": created,
            "message": "the pod waits for its scheduling gates"}]);
    }
    object["status"] = status;
}

/// A client may leave out what the server decided when the pod was new.
pub fn changed_pod(new: &mut Value, old: &Value) {
    let spec = object_mut(new, "spec");
    tolerate_lost_nodes(spec);
    for key in ["serviceAccountName", "serviceAccount", "priority", "preemptionPolicy"] {
        if spec.get(key).is_none() {
            copy_field(spec, &old["spec"], key);
        }
    }
}

fn tolerate_lost_nodes(spec: &mut Value) {
    for taint in LOST_NODE_TAINTS {
        if items(spec, "tolerations").iter().any(|toleration| tolerates(toleration, taint)) {
            continue;
        }
        let toleration = json!({"key": taint, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS});
        match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(tolerations) => tolerations.push(toleration),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
}

/// Whether a toleration already speaks about a taint's eviction. An empty key or effect means any.
fn tolerates(toleration: &Value, taint: &str) -> bool {
    let key = some_text(toleration, "key").is_none_or(|key| key == taint);
    let effect = some_text(toleration, "effect").is_none_or(|effect| effect == "NoExecute");
    key && effect
}

/// How much of what it uses the pod is promised: what is evicted first depends on it.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = items(spec, "initContainers").iter().chain(items(spec, "containers"));
    let (mut guaranteed, mut best_effort) = (true, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let amount = |part: &str| {
                let value = container.get("resources")?.get(part)?.get(resource)?;
                Quantity::from_value(value).ok().filter(|quantity| !quantity.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            best_effort &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pod_is_pending_and_tolerates_lost_nodes() {
        let mut object = json!({"spec": {"containers": [{"name": "c"}], "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}});
        new_pod(&mut object);
        assert_eq!(object["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        let spec = &object["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
        let seconds: Vec<_> = items(spec, "tolerations").iter().map(|t| t["tolerationSeconds"].clone()).collect();
        assert_eq!(seconds, [5, 300]);
        let mut any = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        new_pod(&mut any);
        assert_eq!(any["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    }

    #[test]
    fn an_update_may_leave_out_what_the_server_decided() {
        let mut old = json!({"spec": {"containers": [{"name": "c"}]}});
        let mut new = old.clone();
        new_pod(&mut old);
        changed_pod(&mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
    }

    #[test]
    fn quality_of_service() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let table = [
            (json!([{}]), "BestEffort"),
            (json!([{"resources": {"requests": full, "limits": full}}]), "Guaranteed"),
            (json!([{"resources": {"requests": full, "limits": full}}, {}]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": full}}]), "Burstable"),
        ];
        for (containers, class) in table {
            assert_eq!(qos_class(&json!({"containers": containers})), class, "{containers}");
        }
    }
}
