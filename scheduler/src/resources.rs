//! What pods ask for and nodes offer.

use std::collections::BTreeMap;

use api::quantity::Quantity as Amount;
use client::pod::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts in the units that are compared: thousandths of a CPU, bytes, and whole pieces of anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    pub fn parse(list: Option<&BTreeMap<String, Quantity>>) -> Resources {
        let mut out = Resources::default();
        for (name, amount) in list.into_iter().flatten() {
            match name.as_str() {
                "cpu" => out.milli_cpu = parse(amount).milli(),
                "memory" => out.memory = parse(amount).units(),
                "ephemeral-storage" => out.ephemeral_storage = parse(amount).units(),
                "pods" => {}
                other => drop(out.extended.insert(other.to_owned(), parse(amount).units())),
            }
        }
        out
    }

    /// What a pod occupies: its containers run together, while init containers run before them, one at a time beside the
    /// sidecars started so far.
    pub fn of_pod(spec: &PodSpec) -> Resources {
        let request = |c: &Container| Resources::parse(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
        let mut sidecars = Resources::default();
        let mut peak = Resources::default();
        for init in spec.init_containers.iter().flatten() {
            let mut step = request(init);
            if init.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&step);
                step = Resources::default();
            }
            step.add(&sidecars);
            peak.raise_to(&step);
        }
        let mut together = sidecars;
        for container in &spec.containers {
            together.add(&request(container));
        }
        together.raise_to(&peak);
        together.add(&Resources::parse(spec.overhead.as_ref()));
        together
    }

    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }
}

/// The API server lets nothing else through than quantities.
pub(crate) fn parse(amount: &Quantity) -> Amount {
    amount.0.parse().unwrap_or(Amount::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).expect("a pod spec")
    }

    #[test]
    fn a_pod_occupies_the_larger_of_init_and_main_phase() {
        let ask = |cpu: &str| serde_json::json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        let cases = [
            (
                serde_json::json!({"containers": [{"name": "a", "resources": ask("100m")}, {"name": "b", "resources": ask("0.2")}]}),
                300,
            ),
            (
                serde_json::json!({"containers": [{"name": "a", "resources": ask("100m")}],
                    "initContainers": [{"name": "i", "resources": ask("1")}, {"name": "j", "resources": ask("500m")}]}),
                1000,
            ),
            (
                serde_json::json!({"containers": [{"name": "a", "resources": ask("100m")}],
                    "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": ask("50m")}, {"name": "i", "resources": ask("200m")}]}),
                250,
            ),
            (
                serde_json::json!({"containers": [{"name": "a", "resources": ask("100m")}], "overhead": {"cpu": "10m"},
                    "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": ask("50m")}]}),
                160,
            ),
        ];
        for (json, milli_cpu) in cases {
            assert_eq!(Resources::of_pod(&spec(json.clone())).milli_cpu, milli_cpu, "{json}");
        }
    }
}
