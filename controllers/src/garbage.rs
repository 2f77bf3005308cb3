//! What the loss of an owner means for its dependents, and an owner's wish for how it leaves.

use client::{DeleteOptions, Metadata, Preconditions, Propagation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::{
    graph::{FOREGROUND, Fate, ORPHAN},
    plan::{Face, Plan, Step, Target, Write},
};

/// An owner, as the server itself last showed it where it mattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Living,
    /// Leaves, and waits for this dependent first.
    Waiting,
    Gone,
}

/// Another object and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependent {
    pub target: Target,
    pub metadata: Metadata,
}

pub struct Input<'a> {
    pub target: Target,
    /// As the server shows it now.
    pub metadata: &'a Metadata,
    /// What has become of each of `metadata.owner_references`, in their order.
    pub owners: &'a [Owner],
    /// Objects that name this one as an owner; needed while it is orphaning or waiting, or its owner waits.
    pub dependents: &'a [Dependent],
}

pub fn plan(input: &Input<'_>) -> Plan {
    match Fate::of(input.metadata) {
        Fate::Orphaning => orphan(input),
        Fate::Foreground => finish(input),
        Fate::Leaving => Plan::nothing(),
        Fate::Living => judge(input),
    }
}

/// An object without a living owner goes; one that has another owner only loses the references to the lost.
fn judge(input: &Input<'_>) -> Plan {
    let any = |state: Owner| input.owners.contains(&state);
    if !any(Owner::Waiting) && !any(Owner::Gone) {
        return Plan::nothing();
    }
    let references = &input.metadata.owner_references;
    if any(Owner::Living) {
        let living = references.iter().zip(input.owners).filter(|(_, o)| **o == Owner::Living);
        let kept: Vec<OwnerReference> = living.map(|(r, _)| r.clone()).collect();
        return one(set_owners(&input.target, input.metadata, &kept));
    }
    let has = |finalizer: &str| input.metadata.finalizers.iter().any(|f| f == finalizer);
    let policy = if any(Owner::Waiting) && !input.dependents.is_empty() || has(FOREGROUND) {
        // Who waits for this one waits for its dependents, too.
        Propagation::Foreground
    } else if has(ORPHAN) {
        Propagation::Orphan
    } else {
        Propagation::Background
    };
    let preconditions = Preconditions {
        uid: Some(input.metadata.uid.clone()),
        // An owner that was added meanwhile would save it.
        resource_version: Some(input.metadata.resource_version.clone()),
    };
    let options = DeleteOptions {
        propagation_policy: Some(policy),
        preconditions: Some(preconditions),
        ..DeleteOptions::default()
    };
    one(Write::delete(input.target.clone(), options))
}

/// Lets every dependent go, and then the object itself.
fn orphan(input: &Input<'_>) -> Plan {
    let uid = &input.metadata.uid;
    let release = input.dependents.iter().filter(|d| d.metadata.owner_references.iter().any(|o| o.uid == *uid));
    let releases = release.map(|d| {
        let kept: Vec<OwnerReference> = d.metadata.owner_references.iter().filter(|o| o.uid != *uid).cloned().collect();
        set_owners(&d.target, &d.metadata, &kept)
    });
    Plan::nothing()
        .then(Step::together(releases.collect()))
        .then(Step::together(vec![without_finalizer(input, ORPHAN)]))
}

/// Lets the object go once no dependent holds it back any more. The dependents are judged by themselves.
fn finish(input: &Input<'_>) -> Plan {
    let uid = &input.metadata.uid;
    let holds = |o: &OwnerReference| o.uid == *uid && o.block_owner_deletion == Some(true);
    if input.dependents.iter().any(|d| d.metadata.owner_references.iter().any(holds)) {
        return Plan::nothing();
    }
    one(without_finalizer(input, FOREGROUND))
}

fn one(write: Write) -> Plan {
    Plan::nothing().then(Step::together(vec![write]))
}

fn set_owners(target: &Target, metadata: &Metadata, owners: &[OwnerReference]) -> Write {
    let patch = json!({ "metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "ownerReferences": owners,
    }});
    Write::merge(target.clone(), Face::Whole, patch)
}

fn without_finalizer(input: &Input<'_>, finalizer: &str) -> Write {
    let kept: Vec<&String> = input.metadata.finalizers.iter().filter(|f| *f != finalizer).collect();
    let patch = json!({ "metadata": {
        "uid": input.metadata.uid,
        "resourceVersion": input.metadata.resource_version,
        "finalizers": kept,
    }});
    Write::merge(input.target.clone(), Face::Whole, patch)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    use super::*;
    use crate::{
        plan::{Action, Resource},
        testing::time,
    };

    fn metadata(owners: &[&str], finalizer: Option<&str>, leaving: bool) -> Metadata {
        let owner = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        Metadata {
            uid: "me".into(),
            name: "me".into(),
            resource_version: "5".into(),
            owner_references: owners.iter().map(owner).collect(),
            finalizers: finalizer.into_iter().map(Into::into).collect(),
            deletion_timestamp: leaving.then(|| time(1)),
            ..Metadata::default()
        }
    }

    fn run(metadata: &Metadata, owners: &[Owner], dependents: &[Dependent]) -> Vec<Action> {
        let target = Target::named(Resource::of::<Pod>(), "x", "me");
        let plan = plan(&Input { target, metadata, owners, dependents });
        plan.writes().map(|w| w.action.clone()).collect()
    }

    fn dependent(owner: &str) -> Dependent {
        let target = Target::named(Resource::of::<Pod>(), "x", "child");
        Dependent { target, metadata: Metadata { uid: "child".into(), ..metadata(&[owner], None, false) } }
    }

    fn policy(actions: &[Action]) -> Option<Propagation> {
        match actions {
            [Action::Delete { options, .. }] => options.propagation_policy,
            _ => None,
        }
    }

    fn patched<'a>(action: &'a Action, field: &str) -> &'a Value {
        match action {
            Action::Merge { patch, .. } => &patch["metadata"][field],
            other => panic!("a patch: {other:?}"),
        }
    }

    #[test]
    fn verdicts() {
        let alone = metadata(&["o"], None, false);
        assert!(run(&alone, &[Owner::Living], &[]).is_empty());
        assert_eq!(policy(&run(&alone, &[Owner::Gone], &[])), Some(Propagation::Background));
        assert_eq!(policy(&run(&alone, &[Owner::Waiting], &[])), Some(Propagation::Background));
        assert_eq!(policy(&run(&alone, &[Owner::Waiting], &[dependent("me")])), Some(Propagation::Foreground));
        assert_eq!(
            policy(&run(&metadata(&["o"], Some(ORPHAN), false), &[Owner::Gone], &[])),
            Some(Propagation::Orphan)
        );
        let shared = run(&metadata(&["gone", "lives"], None, false), &[Owner::Gone, Owner::Living], &[]);
        assert_eq!(patched(&shared[0], "ownerReferences")[0]["uid"], "lives");
        assert_eq!(patched(&shared[0], "resourceVersion"), "5");
        assert!(run(&metadata(&["o"], None, true), &[Owner::Gone], &[]).is_empty(), "leaves already");
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let waiting = metadata(&[], Some(FOREGROUND), true);
        assert!(run(&waiting, &[], &[dependent("me")]).is_empty());
        assert_eq!(patched(&run(&waiting, &[], &[])[0], "finalizers"), &json!([]));
        let mut loose = dependent("me");
        loose.metadata.owner_references[0].block_owner_deletion = None;
        assert_eq!(run(&waiting, &[], &[loose]).len(), 1);
    }

    #[test]
    fn orphans_are_let_go_first() {
        let actions = run(&metadata(&[], Some(ORPHAN), true), &[], &[dependent("me")]);
        assert_eq!(patched(&actions[0], "ownerReferences"), &json!([]));
        assert_eq!(patched(&actions[1], "finalizers"), &json!([]));
    }
}
