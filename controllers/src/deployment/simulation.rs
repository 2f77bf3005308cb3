//! Rollouts from one template to another, step by step, with every set as late as it likes: the bounds hold at each
//! step, and in the end the newest template is all there is.

use std::sync::Arc;

use client::{Object, object, pod::Pod};
use k8s_openapi::{
    api::apps::v1::{
        Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetStatus, RollingUpdateDeployment,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use proptest::prelude::*;

use super::{Input, Limits, new_name, plan, replicas};
use crate::{
    plan::{Action, Plan, value},
    testing::{at, labels, merge, meta, owned, pod, running, template, time},
};

struct Cluster {
    deployment: Deployment,
    sets: Vec<Sim>,
    clock: i64,
    named: i64,
}

struct Sim {
    set: ReplicaSet,
    /// How many pods there are, and how many of them are ready.
    pods: i32,
    ready: i32,
}

fn deployment(desired: i32, surge: IntOrString, unavailable: IntOrString) -> Deployment {
    let rolling = RollingUpdateDeployment { max_surge: Some(surge), max_unavailable: Some(unavailable) };
    Deployment {
        metadata: meta("web"),
        spec: Some(DeploymentSpec {
            replicas: Some(desired),
            selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), match_expressions: None },
            template: template("web", "v0"),
            strategy: Some(DeploymentStrategy { type_: Some("RollingUpdate".into()), rolling_update: Some(rolling) }),
            revision_history_limit: Some(2),
            progress_deadline_seconds: Some(600),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

impl Cluster {
    fn new(deployment: Deployment) -> Cluster {
        Cluster { deployment, sets: Vec::new(), clock: 1000, named: 0 }
    }

    fn limits(&self) -> Limits {
        Limits::of(&self.deployment)
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|s| replicas(&s.set)).sum()
    }

    /// Ready pods that stay when every set has come to the size that it is asked to have.
    fn floor(&self) -> i32 {
        self.sets.iter().map(|s| s.ready.min(replicas(&s.set))).sum()
    }

    fn is_scaling(&self) -> bool {
        let noted = |s: &&Sim| replicas(&s.set) > 0 && super::revision::noted_desired(&s.set).is_some();
        let desired = Some(self.limits().desired);
        self.sets.iter().filter(noted).any(|s| super::revision::noted_desired(&s.set) != desired)
    }

    fn look(&self, pods: &[Arc<Pod>]) -> Plan {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().map(|s| Arc::new(s.set.clone())).collect();
        let name = new_name(&self.deployment);
        let namesake = sets.iter().find(|s| object::name(&***s) == name);
        plan(&Input {
            deployment: &self.deployment,
            sets: &sets,
            namesake: namesake.map(|s| &**s),
            pods,
            failure: None,
            now: at(self.clock),
        })
    }

    fn act(&mut self, plan: &Plan) {
        for write in plan.writes() {
            match &write.action {
                Action::Create { object, .. } => {
                    let mut set: ReplicaSet = serde_json::from_value(object.clone()).expect("a set");
                    self.named += 1;
                    let m = set.meta_mut();
                    m.uid = Some(format!("uid-{}", self.named));
                    m.generation = Some(1);
                    m.creation_timestamp = Some(time(self.clock));
                    assert!(self.sets.iter().all(|s| object::name(&s.set) != object::name(&set)), "a name twice");
                    self.sets.push(Sim { set, pods: 0, ready: 0 });
                }
                Action::Replace { target, object, .. } => {
                    let sim = self.sets.iter_mut().find(|s| object::name(&s.set) == target.name).expect("a set");
                    let mut set: ReplicaSet = serde_json::from_value(object.clone()).expect("a set");
                    if set.spec != sim.set.spec {
                        set.metadata.generation = sim.set.metadata.generation.map(|g| g + 1);
                    }
                    sim.set = set;
                }
                Action::Delete { target, .. } => {
                    let at = self.sets.iter().position(|s| object::name(&s.set) == target.name).expect("a set");
                    let gone = self.sets.remove(at);
                    assert_eq!((gone.pods, replicas(&gone.set)), (0, 0), "a set in use was deleted");
                }
                Action::Merge { target, patch, .. } => {
                    assert_eq!(target.resource.kind, "Deployment");
                    let mut deployment = value(&self.deployment);
                    merge(&mut deployment, patch);
                    self.deployment = serde_json::from_value(deployment).expect("a deployment");
                }
                Action::DeleteAll { .. } => panic!("no deployment does this: {write:?}"),
            }
        }
    }

    /// One look and its writes, with the bounds checked.
    fn step(&mut self) -> Plan {
        let (total, floor, scaling) = (self.total(), self.floor(), self.is_scaling());
        let plan = self.look(&[]);
        self.act(&plan);
        let limits = self.limits();
        assert!(self.total() <= total.max(limits.most()), "too many: {} of {limits:?} by {plan:#?}", self.total());
        if !scaling {
            let least = floor.min(limits.least_available());
            assert!(self.floor() >= least, "too few: {} of {least} by {plan:#?}", self.floor());
        }
        plan
    }

    fn bring_to_size(&mut self, i: usize) {
        let Some(sim) = self.sets.get_mut(i) else { return };
        sim.pods = replicas(&sim.set);
        sim.ready = sim.ready.min(sim.pods);
    }

    fn make_ready(&mut self, i: usize) {
        let Some(sim) = self.sets.get_mut(i) else { return };
        sim.ready = (sim.ready + 1).min(sim.pods);
    }

    fn make_unready(&mut self, i: usize) {
        let Some(sim) = self.sets.get_mut(i) else { return };
        sim.ready = (sim.ready - 1).max(0);
    }

    fn report(&mut self, i: usize) {
        let Some(sim) = self.sets.get_mut(i) else { return };
        let observed = sim.set.status.as_ref().and_then(|s| s.observed_generation);
        sim.set.status = Some(ReplicaSetStatus {
            replicas: sim.pods,
            ready_replicas: Some(sim.ready),
            available_replicas: Some(sim.ready),
            // A set that has not acted upon its specification yet does not say that it has seen it.
            observed_generation: if sim.pods == replicas(&sim.set) { sim.set.metadata.generation } else { observed },
            ..ReplicaSetStatus::default()
        });
    }

    fn edit(&mut self, change: impl FnOnce(&mut DeploymentSpec)) {
        change(self.deployment.spec.as_mut().expect("a spec"));
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..300 {
            self.clock += 1;
            let plan = self.step();
            quiet = if plan.steps.is_empty() { quiet + 1 } else { 0 };
            for i in 0..self.sets.len() {
                self.bring_to_size(i);
                self.make_ready(i);
                self.report(i);
            }
            if quiet > 1 && self.floor() == self.limits().desired {
                return;
            }
        }
        panic!("the rollout does not end: {:#?}", self.deployment.status);
    }

    fn reason(&self, kind: &str) -> Option<&str> {
        let conditions = self.deployment.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == kind)?.reason.as_deref()
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|s| replicas(&s.set)).collect()
    }
}

fn part() -> impl Strategy<Value = IntOrString> {
    prop_oneof![(0..4_i32).prop_map(IntOrString::Int), (0..=100_i32).prop_map(|p| IntOrString::String(format!("{p}%")))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_and_rollouts_end(
        desired in 0..12_i32,
        surge in part(),
        unavailable in part(),
        steps in proptest::collection::vec((0..12_u8, 0..4_usize, 0..12_i32), 0..120),
    ) {
        let mut cluster = Cluster::new(deployment(desired, surge, unavailable));
        for (what, i, n) in steps {
            cluster.clock += 1;
            match what {
                0..=3 => { cluster.step(); }
                4 | 5 => cluster.bring_to_size(i),
                // A set tells of its pods' readiness at once, of its size when it comes to it.
                6 | 7 => { cluster.make_ready(i); cluster.report(i); }
                8 => { cluster.make_unready(i); cluster.report(i); }
                9 => cluster.report(i),
                10 => cluster.edit(|s| s.template = template("web", &format!("v{}", n % 4))),
                _ => cluster.edit(|s| s.replicas = Some(n)),
            }
        }
        cluster.settle();
        let image = cluster.deployment.spec.as_ref().expect("a spec").template.clone();
        for sim in &cluster.sets {
            let newest = super::revision::has_template(&sim.set, &cluster.deployment);
            prop_assert_eq!(replicas(&sim.set), if newest { cluster.limits().desired } else { 0 }, "{:?}", image);
        }
        prop_assert!(cluster.sets.len() <= 3, "the history is limited");
        prop_assert_eq!(cluster.reason("Progressing"), Some("NewReplicaSetAvailable"));
        prop_assert_eq!(cluster.reason("Available"), Some("MinimumReplicasAvailable"));
        let status = cluster.deployment.status.clone().expect("a status");
        prop_assert_eq!(status.updated_replicas.unwrap_or(0), cluster.limits().desired);
        prop_assert_eq!(status.observed_generation, cluster.deployment.metadata.generation);
    }
}

fn quarter() -> IntOrString {
    IntOrString::String("25%".into())
}

fn annotation<'a>(object: &'a impl Object, name: &str) -> Option<&'a str> {
    object::annotation(object, name)
}

#[test]
fn a_rollback_finds_the_old_set_and_numbers_it_anew() {
    let mut cluster = Cluster::new(deployment(4, quarter(), quarter()));
    cluster.deployment.metadata.annotations = Some(labels(&[("kubernetes.io/change-cause", "first")]));
    cluster.settle();
    assert_eq!(annotation(&cluster.deployment, super::revision::REVISION), Some("1"));
    cluster.edit(|s| s.template = template("web", "v1"));
    cluster.settle();
    assert_eq!(annotation(&cluster.deployment, super::revision::REVISION), Some("2"));
    cluster.edit(|s| s.template = template("web", "v0"));
    cluster.settle();
    assert_eq!(cluster.sizes(), [4, 0]);
    let first = &cluster.sets[0].set;
    assert_eq!(annotation(first, super::revision::REVISION), Some("3"));
    assert_eq!(annotation(first, "deployment.kubernetes.io/revision-history"), Some("1"));
    assert_eq!(annotation(first, "kubernetes.io/change-cause"), Some("first"));
    assert_eq!(annotation(&cluster.deployment, super::revision::REVISION), Some("3"));
}

#[test]
fn a_broken_template_stops_at_the_bounds_and_is_told_in_the_end() {
    let mut cluster = Cluster::new(deployment(4, quarter(), quarter()));
    cluster.settle();
    cluster.edit(|s| s.template = template("web", "broken"));
    for _ in 0..20 {
        cluster.step();
        cluster.bring_to_size(0);
        cluster.bring_to_size(1);
        cluster.report(0);
        cluster.report(1);
    }
    assert_eq!(cluster.sizes(), [3, 2]);
    assert_eq!(cluster.reason("Progressing"), Some("ReplicaSetUpdated"));
    let plan = cluster.look(&[]);
    assert_eq!(plan.after.map(|d| d.as_secs()), Some(600));
    cluster.clock += 601;
    cluster.step();
    assert_eq!(cluster.reason("Progressing"), Some("ProgressDeadlineExceeded"));
    assert_eq!(cluster.look(&[]), Plan::nothing());
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = Cluster::new(deployment(2, quarter(), quarter()));
    cluster.settle();
    cluster.edit(|s| {
        s.paused = Some(true);
        s.template = template("web", "v1");
        s.replicas = Some(5);
    });
    for _ in 0..5 {
        cluster.step();
        cluster.bring_to_size(0);
    }
    assert_eq!(cluster.sizes(), [5]);
    assert_eq!(cluster.reason("Progressing"), Some("DeploymentPaused"));
    cluster.edit(|s| s.paused = None);
    cluster.settle();
    assert_eq!(cluster.sizes(), [0, 5]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut recreate = deployment(3, quarter(), quarter());
    recreate.spec.as_mut().expect("a spec").strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    let mut cluster = Cluster::new(recreate);
    for _ in 0..3 {
        cluster.step();
    }
    assert_eq!(cluster.sizes(), [3]);
    cluster.edit(|s| s.template = template("web", "v1"));
    let old = |pod: Pod, cluster: &Cluster| Arc::new(owned(pod, object::controller_reference(&cluster.sets[0].set)));
    let mut leaving = running("a", "n", Some(1));
    leaving.metadata.deletion_timestamp = Some(time(1));
    let mut finished = pod("b");
    finished.status.as_mut().expect("a status").phase = Some("Failed".into());
    let (leaving, finished) = (old(leaving, &cluster), old(finished, &cluster));
    for _ in 0..3 {
        let plan = cluster.look(&[Arc::clone(&leaving), Arc::clone(&finished)]);
        cluster.act(&plan);
    }
    assert_eq!(cluster.sizes(), [0], "an old pod is still there");
    let plan = cluster.look(&[finished]);
    cluster.act(&plan);
    assert_eq!(cluster.sizes(), [0, 3]);
}

#[test]
fn a_taken_name_is_evaded() {
    let cluster = Cluster::new(deployment(1, quarter(), quarter()));
    let foreign = ReplicaSet { metadata: meta(&new_name(&cluster.deployment)), ..ReplicaSet::default() };
    let plan = plan(&Input {
        deployment: &cluster.deployment,
        sets: &[],
        namesake: Some(&foreign),
        pods: &[],
        failure: None,
        now: at(1),
    });
    assert!(!plan.writes().any(|w| matches!(w.action, Action::Create { .. })));
    let mut after = Cluster::new(cluster.deployment.clone());
    after.act(&plan);
    assert_eq!(after.deployment.status.as_ref().and_then(|s| s.collision_count), Some(1));
    assert_ne!(new_name(&after.deployment), new_name(&cluster.deployment));
}
