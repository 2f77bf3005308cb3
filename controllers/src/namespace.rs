//! The end of a namespace: pods go first, then everything else, then the namespace itself.

use std::collections::BTreeMap;

use client::{Metadata, object};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::plan::{Plan, Resource, Step, Target, Write};

const FINALIZER: &str = "kubernetes";

/// What is left of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Rest {
    pub resource: Resource,
    pub objects: Vec<Metadata>,
}

pub struct Input<'a> {
    pub namespace: &'a Namespace,
    /// Kinds that still have objects here.
    pub rest: &'a [Rest],
    pub now: Timestamp,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let namespace = input.namespace;
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_deref()).unwrap_or_default();
    if !object::is_deleting(namespace) || !finalizers.iter().any(|f| f == FINALIZER) {
        return Plan::nothing();
    }
    if input.rest.is_empty() {
        let mut last = namespace.clone();
        last.spec.get_or_insert_default().finalizers =
            Some(finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect());
        return Plan::nothing().then(Step::together(vec![Write::finalize(&last)]));
    }
    // What pods still use while they stop (their secrets, the events about them) goes after them.
    let pods: Vec<&Rest> = input.rest.iter().filter(|r| r.resource.plural == "pods").collect();
    let now: Vec<&Rest> = if pods.is_empty() { input.rest.iter().collect() } else { pods };
    let begun = |r: &&&Rest| r.objects.iter().any(|o| o.deletion_timestamp.is_none());
    let name = object::name(namespace);
    let deletes = now.iter().filter(begun).map(|r| Write::delete_all(Target::named(r.resource, name, "")));
    let deletes: Vec<Write> = deletes.collect();
    let status = status(input);
    Plan::nothing().then(Step::together(deletes)).then(Step::together(status.into_iter().collect()))
}

/// Says what the end is waiting for.
fn status(input: &Input<'_>) -> Option<Write> {
    let remaining: Vec<String> = input
        .rest
        .iter()
        .map(|r| format!("{} has {} resource instances", resource_name(&r.resource), r.objects.len()))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for object in input.rest.iter().flat_map(|r| &r.objects) {
        for finalizer in &object.finalizers {
            *finalizers.entry(finalizer).or_default() += 1;
        }
    }
    let held: Vec<String> = finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let plain =
        |kind: &str, reason: &str, message: &str| (kind.to_owned(), "False", reason.to_owned(), message.to_owned());
    let conditions = [
        plain("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
        plain(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        plain(
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining".to_owned(),
            "True",
            "SomeResourcesRemain".to_owned(),
            format!("Some resources are remaining: {}", remaining.join(", ")),
        ),
        if held.is_empty() {
            plain(
                "NamespaceFinalizersRemaining",
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            )
        } else {
            (
                "NamespaceFinalizersRemaining".to_owned(),
                "True",
                "SomeFinalizersRemain".to_owned(),
                format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
            )
        },
    ];
    let mut status = input.namespace.status.clone().unwrap_or_default();
    let list = status.conditions.get_or_insert_default();
    for (kind, state, reason, message) in conditions {
        let old = list.iter().position(|c| c.type_ == kind);
        let since = old.map(|at| &list[at]).filter(|c| c.status == state).and_then(|c| c.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: kind,
            status: state.to_owned(),
            reason: Some(reason),
            message: Some(message),
            last_transition_time: since.or(Some(Time(input.now))),
        };
        match old {
            Some(at) => list[at] = new,
            None => list.push(new),
        }
    }
    Write::status(input.namespace, &input.namespace.status, &Some(status))
}

fn resource_name(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("{}.", resource.plural)
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, NamespaceSpec, NamespaceStatus, Pod};

    use super::*;
    use crate::{
        plan::{Action, Face},
        testing::{at, meta, time},
    };

    fn namespace(leaving: bool) -> Namespace {
        let mut metadata = meta("x");
        metadata.deletion_timestamp = leaving.then(|| time(1));
        let spec = Some(NamespaceSpec { finalizers: Some(vec![FINALIZER.into()]) });
        let status = Some(NamespaceStatus { phase: Some("Terminating".into()), conditions: None });
        Namespace { metadata, spec, status }
    }

    fn rest(resource: Resource, leaving: bool, finalizer: Option<&str>) -> Rest {
        let object = Metadata {
            deletion_timestamp: leaving.then(|| time(1)),
            finalizers: finalizer.into_iter().map(Into::into).collect(),
            ..Metadata::default()
        };
        Rest { resource, objects: vec![object] }
    }

    fn emptied(plan: &Plan) -> Vec<&str> {
        let all = plan.writes().filter_map(|w| match &w.action {
            Action::DeleteAll { target } => Some(target.resource.plural),
            _ => None,
        });
        all.collect()
    }

    #[test]
    fn pods_go_first_and_the_namespace_last() {
        let (pods, maps) = (Resource::of::<Pod>(), Resource::of::<ConfigMap>());
        let leaving = namespace(true);
        let run = |namespace: &Namespace, rest: &[Rest]| plan(&Input { namespace, rest, now: at(9) });
        assert_eq!(run(&namespace(false), &[rest(pods, false, None)]), Plan::nothing());
        assert_eq!(emptied(&run(&leaving, &[rest(maps, false, None), rest(pods, false, None)])), ["pods"]);
        assert!(emptied(&run(&leaving, &[rest(maps, false, None), rest(pods, true, None)])).is_empty());
        assert_eq!(emptied(&run(&leaving, &[rest(maps, false, None)])), ["configmaps"]);
        let last = run(&leaving, &[]);
        let Action::Replace { face, object, .. } = &last.steps[0].writes[0].action else { panic!("a write: {last:?}") };
        assert_eq!((*face, &object["spec"]["finalizers"]), (Face::Finalize, &serde_json::json!([])));
    }

    #[test]
    fn says_what_it_waits_for_and_then_rests() {
        let mut leaving = namespace(true);
        let left = [rest(Resource::of::<ConfigMap>(), true, Some("mine.io/hold"))];
        let plan = |namespace: &Namespace| plan(&Input { namespace, rest: &left, now: at(9) });
        let first = plan(&leaving);
        let Action::Merge { patch, .. } = &first.steps[0].writes[0].action else { panic!("a status: {first:?}") };
        assert_eq!(patch["status"]["conditions"][3]["status"], "True");
        assert_eq!(patch["status"]["conditions"][4]["reason"], "SomeFinalizersRemain");
        let conditions = serde_json::from_value(patch["status"]["conditions"].clone()).expect("conditions");
        leaving.status.as_mut().expect("a status").conditions = conditions;
        assert_eq!(plan(&leaving), Plan::nothing());
    }
}
