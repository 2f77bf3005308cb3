//! Replica sets and replication controllers: as many active pods as asked for. One plan serves both kinds.

use std::{sync::Arc, time::Duration};

use client::{DeleteOptions, Object, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{Pod as WholePod, PodTemplateSpec, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::{
    claim::{self, Claim},
    plan::{Note, Plan, Step, Write, earliest, reference},
    pod::{self, Availability},
    ranking::{self, Crowding},
    selector::Selector,
};

/// The most pods that one plan creates or deletes: what lies above waits for the next look, so that one huge set does
/// not hold the API server alone.
const BURST: usize = 500;

/// What the two kinds share.
pub trait Set: Object {
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> Selector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn status(&self) -> ReplicaSetStatus;
    /// The write that brings the status from what it is to `new`.
    fn write_status(&self, new: &ReplicaSetStatus) -> Option<Write>;
}

impl Set for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Selector {
        self.spec.as_ref().map(|s| Selector::of(&s.selector)).unwrap_or_default()
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn write_status(&self, new: &ReplicaSetStatus) -> Option<Write> {
        Write::status(self, &crate::plan::value(&self.status), &crate::plan::value(new))
    }
}

impl Set for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Selector {
        self.spec.as_ref().and_then(|s| s.selector.as_ref()).map(Selector::map).unwrap_or_default()
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ReplicaSetStatus {
        let status = self.status.clone().unwrap_or_default();
        let conditions = status.conditions.map(|conditions| {
            let same = conditions.into_iter().map(|c| ReplicaSetCondition {
                last_transition_time: c.last_transition_time,
                message: c.message,
                reason: c.reason,
                status: c.status,
                type_: c.type_,
            });
            same.collect()
        });
        ReplicaSetStatus {
            available_replicas: status.available_replicas,
            conditions,
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
            terminating_replicas: None,
        }
    }

    fn write_status(&self, new: &ReplicaSetStatus) -> Option<Write> {
        // The wire form is the same but for the count of terminating pods, which this kind does not have.
        let new = ReplicaSetStatus { terminating_replicas: None, ..new.clone() };
        Write::status(self, &crate::plan::value(&self.status), &crate::plan::value(&new))
    }
}

/// What is seen of one set.
pub struct Input<'a, S> {
    pub set: &'a S,
    /// Pods that refer to the set, and those that its selector matches; others do no harm.
    pub pods: &'a [Arc<Pod>],
    /// Pods of the sets that have the same owner, where known: they decide who stands doubled up on a node.
    pub crowding: &'a Crowding,
    /// Why the last attempt was refused, if it was.
    pub failure: Option<&'a str>,
    pub now: Timestamp,
}

pub fn plan<S: Set>(input: &Input<'_, S>) -> Plan {
    let set = input.set;
    let selector = set.selector();
    let mut mine: Vec<Arc<Pod>> = Vec::new();
    let mut claims = Vec::new();
    for candidate in input.pods {
        match claim::claim(set.meta(), &selector, &**candidate) {
            Claim::Owned => mine.push(Arc::clone(candidate)),
            // A finished pod would be taken in only to be ignored.
            Claim::Adopt if pod::is_active(candidate) => {
                claims.push(claim::adopt(set, &**candidate));
                mine.push(Arc::clone(candidate));
            }
            Claim::Release => claims.push(claim::release(set, &**candidate)),
            Claim::Adopt | Claim::Foreign => {}
        }
    }
    let active: Vec<Arc<Pod>> = mine.iter().filter(|p| pod::is_active(p)).map(Arc::clone).collect();
    let moves = if object::is_deleting(set) { Step::together(Vec::new()) } else { moves(input, &active) };
    let (status, next) = status(input, &mine, &active);
    let status = Step::together(set.write_status(&status).into_iter().collect());
    let plan = Plan::nothing().then(Step::together(claims)).look_again(next);
    // Normally the pods come first, as they are what somebody waits for. After a refusal the status goes first, as the
    // same refusal would end this plan too, and the reason would never be seen.
    if input.failure.is_some() { plan.then(status).then(moves) } else { plan.then(moves).then(status) }
}

/// The pods to create or to delete.
fn moves<S: Set>(input: &Input<'_, S>, active: &[Arc<Pod>]) -> Step {
    let set = input.set;
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    let about = reference(set);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST);
        let Some(template) = set.template() else { return Step::together(Vec::new()) };
        let create = Write::create(&new_pod(set, template)).told(
            about,
            Some(Note::normal("SuccessfulCreate", "Created pod: {}")),
            Some(Note::warning("FailedCreate", "Error creating: {}")),
        );
        return Step::slow_start(vec![create; missing]);
    }
    let surplus = (active.len() - wanted).min(BURST);
    let victims = ranking::to_delete(active, surplus, input.crowding, input.now);
    let deletes = victims.iter().map(|victim| {
        let options = DeleteOptions::uid(object::uid(&**victim));
        Write::delete(crate::plan::Target::of(&**victim), options).told(
            about.clone(),
            Some(Note::normal("SuccessfulDelete", format!("Deleted pod: {}", object::name(&**victim)))),
            Some(Note::warning("FailedDelete", "Error deleting: {}")),
        )
    });
    Step::together(deletes.collect())
}

fn new_pod<S: Set>(set: &S, template: &PodTemplateSpec) -> WholePod {
    let from = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", object::name(set))),
        namespace: set.meta().namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![object::controller_reference(set)]),
        ..ObjectMeta::default()
    };
    WholePod { metadata, spec: template.spec.clone(), status: None }
}

/// The status as the pods show it now, and when it will change by the mere passing of time.
fn status<S: Set>(
    input: &Input<'_, S>,
    mine: &[Arc<Pod>],
    active: &[Arc<Pod>],
) -> (ReplicaSetStatus, Option<Duration>) {
    let set = input.set;
    let old = set.status();
    let template_labels = set.template().and_then(|t| t.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let template_labels = Selector::map(&template_labels);
    let (mut labeled, mut ready, mut available, mut next) = (0, 0, 0, None);
    for pod in active {
        labeled += i32::from(template_labels.matches(pod.metadata.labels.as_ref()));
        ready += i32::from(pod::is_ready(pod));
        match pod::availability(pod, set.min_ready_seconds(), input.now) {
            Availability::Available => available += 1,
            Availability::In(left) => next = earliest(next, Some(left)),
            Availability::Unready => {}
        }
    }
    let terminating = mine.iter().filter(|p| !pod::is_finished(p) && object::is_deleting(&***p)).count();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.meta().generation,
        conditions: conditions(input, &old, active.len()),
    };
    (status, next)
}

/// `ReplicaFailure` stands while the last attempt was refused and the count is still wrong.
fn conditions<S: Set>(input: &Input<'_, S>, old: &ReplicaSetStatus, active: usize) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let wanted = usize::try_from(input.set.replicas()).unwrap_or(0);
    let failing = input.failure.filter(|_| active != wanted && !object::is_deleting(input.set));
    let reason = if active < wanted { "FailedCreate" } else { "FailedDelete" };
    let had = conditions.iter().position(|c| c.type_ == "ReplicaFailure");
    match (failing, had) {
        (None, None) => {}
        (None, Some(at)) => {
            conditions.remove(at);
        }
        // The text may name a different generated pod each time; only a new reason is news.
        (Some(_), Some(at)) if conditions[at].reason.as_deref() == Some(reason) => {}
        (Some(text), had) => {
            let condition = ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(text.to_owned()),
                last_transition_time: Some(Time(input.now)),
            };
            if let Some(at) = had {
                conditions.remove(at);
            }
            conditions.push(condition);
        }
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Zero is left out on the wire.
fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{apps::v1::ReplicaSetSpec, core::v1::ReplicationControllerSpec},
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };
    use serde_json::json;

    use super::*;
    use crate::{
        plan::{Action, Pace},
        testing::{at, labels, meta, owned, pod, running, template, time},
    };

    fn set(replicas: i32) -> ReplicaSet {
        ReplicaSet {
            metadata: meta("web"),
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), match_expressions: None },
                template: Some(template("web", "nginx")),
                min_ready_seconds: None,
            }),
            status: None,
        }
    }

    fn of(set: &impl Object, mut pod: Pod) -> Arc<Pod> {
        pod.metadata.labels = Some(labels(&[("app", "web")]));
        Arc::new(owned(pod, object::controller_reference(set)))
    }

    fn run<S: Set>(set: &S, pods: &[Arc<Pod>], failure: Option<&str>) -> Plan {
        plan(&Input { set, pods, crowding: &Crowding::new(), failure, now: at(1000) })
    }

    fn deleted(plan: &Plan) -> Vec<String> {
        let names = plan.writes().filter_map(|w| match &w.action {
            Action::Delete { target, .. } => Some(target.name.clone()),
            _ => None,
        });
        names.collect()
    }

    fn merged(plan: &Plan) -> Vec<(&str, &serde_json::Value)> {
        let patches = plan.writes().filter_map(|w| match &w.action {
            Action::Merge { target, patch, .. } => Some((target.name.as_str(), patch)),
            _ => None,
        });
        patches.collect()
    }

    #[test]
    fn creates_what_is_missing() {
        let set = set(3);
        let plan = run(&set, &[of(&set, running("a", "n", Some(1)))], None);
        let [create, status] = plan.steps.as_slice() else { panic!("two steps: {plan:?}") };
        assert_eq!((create.pace, create.writes.len()), (Pace::SlowStart, 2));
        let Action::Create { object, .. } = &create.writes[0].action else { panic!("a create: {create:?}") };
        assert_eq!(object["metadata"]["generateName"], "web-");
        assert_eq!(object["metadata"]["namespace"], "default");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "web-uid");
        assert_eq!(object["metadata"]["ownerReferences"][0]["controller"], true);
        assert_eq!(object["spec"]["containers"][0]["image"], "nginx");
        assert_eq!(status.writes.len(), 1);
        let status = merged(&plan)[0].1;
        assert_eq!(
            status["status"],
            json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "fullyLabeledReplicas": 1,
                   "observedGeneration": 1, "terminatingReplicas": 0})
        );
        assert_eq!(status["metadata"]["resourceVersion"], "1");
    }

    #[test]
    fn deletes_what_is_too_much_and_then_rests() {
        let mut set = set(1);
        let pods = [of(&set, running("a", "n", Some(1))), of(&set, running("b", "n", None)), of(&set, pod("c"))];
        assert_eq!(deleted(&run(&set, &pods, None)), ["c", "b"]);
        set.status = Some(ReplicaSetStatus {
            replicas: 1,
            fully_labeled_replicas: Some(1),
            ready_replicas: Some(1),
            available_replicas: Some(1),
            terminating_replicas: Some(0),
            observed_generation: Some(1),
            conditions: None,
        });
        assert_eq!(run(&set, &pods[..1], None), Plan::nothing());
    }

    #[test]
    fn ignores_finished_and_leaving_pods() {
        let set = set(1);
        let mut finished = pod("finished");
        finished.status.as_mut().expect("a status").phase = Some("Failed".into());
        let mut leaving = running("leaving", "n", Some(1));
        leaving.metadata.deletion_timestamp = Some(time(999));
        let plan = run(&set, &[of(&set, finished), of(&set, leaving)], None);
        assert_eq!(plan.steps[0].writes.len(), 1);
        assert_eq!(merged(&plan)[0].1["status"]["terminatingReplicas"], 1);
        assert_eq!(merged(&plan)[0].1["status"]["replicas"], 0);
    }

    #[test]
    fn takes_in_and_lets_go() {
        let set = set(1);
        let mut orphan = running("orphan", "n", Some(1));
        orphan.metadata.labels = Some(labels(&[("app", "web")]));
        let stray = owned(running("stray", "n", Some(1)), object::controller_reference(&set));
        let plan = run(&set, &[Arc::new(orphan), Arc::new(stray)], None);
        let claims = &plan.steps[0];
        assert_eq!(claims.writes.len(), 2);
        assert_eq!(merged(&plan)[0].0, "orphan");
        assert_eq!(merged(&plan)[0].1["metadata"]["ownerReferences"][0]["uid"], "web-uid");
        assert_eq!(merged(&plan)[1].1["metadata"]["ownerReferences"], json!([]));
        assert_eq!(claims.writes[0].guard.as_ref().map(|g| g.uid.as_str()), Some("web-uid"));
        assert!(!plan.writes().any(|w| matches!(w.action, Action::Create { .. } | Action::Delete { .. })));
    }

    #[test]
    fn a_leaving_set_is_left_alone() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(time(999));
        assert!(run(&set, &[], None).writes().all(|w| matches!(w.action, Action::Merge { .. })));
    }

    #[test]
    fn availability_is_looked_at_when_it_falls_due() {
        let mut set = set(2);
        set.spec.as_mut().expect("a spec").min_ready_seconds = Some(30);
        let pods = [of(&set, running("a", "n", Some(990))), of(&set, running("b", "n", Some(900)))];
        let plan = run(&set, &pods, None);
        assert_eq!(plan.after, Some(Duration::from_secs(20)));
        assert_eq!(merged(&plan)[0].1["status"]["availableReplicas"], 1);
        assert_eq!(merged(&plan)[0].1["status"]["readyReplicas"], 2);
    }

    #[test]
    fn a_refusal_is_told_once_and_forgotten_when_it_is_over() {
        let mut set = set(1);
        let plan = run(&set, &[], Some("quota exceeded"));
        let condition = &merged(&plan)[0].1["status"]["conditions"][0];
        assert_eq!((&condition["type"], &condition["reason"]), (&json!("ReplicaFailure"), &json!("FailedCreate")));
        assert!(matches!(plan.steps[0].writes[0].action, Action::Merge { .. }), "the status goes first");
        let (mut failed, _) = status(
            &Input { set: &set, pods: &[], crowding: &Crowding::new(), failure: Some("x"), now: at(1) },
            &[],
            &[],
        );
        failed.replicas = 0;
        set.status = Some(failed);
        assert!(merged(&run(&set, &[], Some("another text"))).is_empty());
        let pods = [of(&set, running("a", "n", Some(1)))];
        assert_eq!(merged(&run(&set, &pods, None))[0].1["status"]["conditions"], serde_json::Value::Null);
    }

    #[test]
    fn replication_controllers_share_the_plan() {
        let rc = ReplicationController {
            metadata: meta("web"),
            spec: Some(ReplicationControllerSpec {
                replicas: Some(2),
                selector: Some(labels(&[("app", "web")])),
                template: Some(template("web", "nginx")),
                min_ready_seconds: None,
            }),
            status: None,
        };
        let plan = run(&rc, &[of(&rc, running("a", "n", Some(1)))], None);
        let Action::Create { object, .. } = &plan.steps[0].writes[0].action else { panic!("a create: {plan:?}") };
        assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
        assert_eq!(object["metadata"]["ownerReferences"][0]["apiVersion"], "v1");
        assert_eq!(merged(&plan)[0].1["status"].get("terminatingReplicas"), None);
    }

    #[test]
    fn one_plan_is_bounded() {
        assert_eq!(run(&set(2000), &[], None).steps[0].writes.len(), BURST);
    }
}
