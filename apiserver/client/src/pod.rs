//! A pod as the control loops see it: what they decide by, and nothing else.
//!
//! There are more pods than objects of any other kind, and a whole one decodes to some 10 KB, most of it what only its
//! node reads: environments, probes, volumes. This is a third of that, and takes less time to decode. The names are
//! those of the API; whoever makes pods makes whole ones.

use std::collections::BTreeMap;

use k8s_openapi::{
    Metadata, NamespaceResourceScope, Resource,
    api::core::v1::{
        Affinity, ContainerPort, PodCondition, PodIP, PodSchedulingGate, ResourceRequirements, Toleration,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde::{Deserialize, Deserializer, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub affinity: Option<Box<Affinity>>,
    #[serde(deserialize_with = "snug")]
    pub containers: Vec<Container>,
    pub hostname: Option<String>,
    pub init_containers: Option<Vec<Container>>,
    pub node_name: Option<String>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub overhead: Option<BTreeMap<String, Quantity>>,
    pub priority: Option<i32>,
    pub scheduler_name: Option<String>,
    pub scheduling_gates: Option<Vec<PodSchedulingGate>>,
    pub subdomain: Option<String>,
    #[serde(deserialize_with = "snug_option")]
    pub tolerations: Option<Vec<Toleration>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub ports: Option<Vec<ContainerPort>>,
    pub resources: Option<ResourceRequirements>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    #[serde(deserialize_with = "snug_option")]
    pub conditions: Option<Vec<PodCondition>>,
    pub container_statuses: Option<Vec<Restarts>>,
    pub init_container_statuses: Option<Vec<Restarts>>,
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIP>>,
}

/// What of a container's status decides anything here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Restarts {
    pub restart_count: i32,
}

/// A list without room to grow: read one by one it has room for four at least, where most pods have one.
fn snug<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Vec<T>, D::Error> {
    let mut list = Vec::deserialize(list)?;
    list.shrink_to_fit();
    Ok(list)
}

fn snug_option<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Option<Vec<T>>, D::Error> {
    let mut list: Option<Vec<T>> = Option::deserialize(list)?;
    list.iter_mut().for_each(Vec::shrink_to_fit);
    Ok(list)
}

impl Resource for Pod {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = NamespaceResourceScope;
}

impl Metadata for Pod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod as Whole;

    use super::*;

    /// Every name here is one of the API's: what is read of a whole pod is what the whole pod says.
    #[test]
    fn a_whole_pod_is_read() {
        let whole = r#"{"metadata":{"name":"a","uid":"u","managedFields":[{"manager":"x"}]},
            "spec":{"affinity":{"nodeAffinity":{}},"hostname":"h","nodeName":"n","nodeSelector":{"a":"b"},"overhead":{"cpu":"1"},
              "priority":7,"schedulerName":"s","schedulingGates":[{"name":"g"}],"subdomain":"d","tolerations":[{"key":"k"}],
              "containers":[{"name":"c","env":[{"name":"E"}],"ports":[{"containerPort":1}],"resources":{"requests":{"cpu":"1m"}},
                "restartPolicy":"Always"}],"initContainers":[{"name":"i"}]},
            "status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}],"conditions":[{"type":"Ready","status":"True"}],
              "containerStatuses":[{"name":"c","ready":true,"restartCount":3,"image":"","imageID":""}],
              "initContainerStatuses":[{"name":"i","restartCount":1,"image":"","imageID":"","ready":true}]}}"#;
        let pod: Pod = serde_json::from_str(whole).expect("a pod");
        let seen = serde_json::to_value(&pod).expect("JSON");
        let through: Whole = serde_json::from_value(seen.clone()).expect("a whole pod");
        let again: Pod = serde_json::from_value(serde_json::to_value(through).expect("JSON")).expect("a pod");
        assert_eq!(pod, again, "a name that the API does not know was lost on the way");
        let spec = seen["spec"].as_object().expect("a spec");
        let unread: Vec<&String> = spec.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name).collect();
        assert!(unread.is_empty(), "not read: {unread:?}");
        assert_eq!(pod.status.and_then(|s| s.container_statuses).expect("statuses")[0].restart_count, 3);
    }
}
