//! Deployments: from one pod template to the next by way of replica sets, one per template.
//!
//! - [`revision`]: which set is the new one, its name, its number in the history
//! - [`rolling`]: how many replicas each set may have now
//! - [`status`]: what the deployment tells about itself
//!
//! Invariant: no plan of a rollout lets the sets ask for more than `replicas + maxSurge` pods, nor takes a pod away that
//! its set reports as available below `replicas - maxUnavailable`, however late the sets come to their sizes.

mod revision;
mod rolling;
mod status;

#[cfg(test)]
mod simulation;

use std::sync::Arc;

use client::{DeleteOptions, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::json;

use crate::{
    claim::{self, Claim},
    plan::{Face, Note, Plan, Step, Target, Write, reference},
    pod,
    selector::Selector,
};

pub use revision::new_name;
use rolling::Limits;

/// What is seen of one deployment.
pub struct Input<'a> {
    pub deployment: &'a Deployment,
    /// Sets that refer to the deployment, and those that its selector matches.
    pub sets: &'a [Arc<ReplicaSet>],
    /// The set that bears [`new_name`], whosever it is.
    pub namesake: Option<&'a ReplicaSet>,
    /// Pods of the deployment's sets; needed only where old ones must be gone before new ones come.
    pub pods: &'a [Arc<Pod>],
    /// Why the last attempt was refused, if it was.
    pub failure: Option<&'a str>,
    pub now: Timestamp,
}

/// The deployment and its sets as they will be when the plan is carried out.
struct Work<'a> {
    deployment: &'a Deployment,
    limits: Limits,
    sets: Vec<Member>,
    /// Index of the set that has the deployment's template.
    new: Option<usize>,
    created: Option<ReplicaSet>,
    collision: bool,
}

/// One set: as it was read, and as it shall be.
struct Member {
    read: Arc<ReplicaSet>,
    set: ReplicaSet,
}

impl Member {
    fn wanted(&self) -> i32 {
        replicas(&self.set)
    }

    /// Whether the set's status speaks of the specification that the set has now. One that does not says nothing: pods
    /// that it counts may have gone before the specification grew again.
    fn is_observed(&self) -> bool {
        let observed = self.read.status.as_ref().and_then(|s| s.observed_generation);
        observed.unwrap_or(0) >= self.read.metadata.generation.unwrap_or(0)
    }

    /// What the set surely has available and is going to keep. Its status may still count pods that the specification,
    /// as read or as planned, no longer asks for.
    fn available(&self) -> i32 {
        let available = self.read.status.as_ref().and_then(|s| s.available_replicas).filter(|_| self.is_observed());
        available.unwrap_or(0).min(replicas(&self.read)).min(self.wanted())
    }

    /// Pods that are asked for and surely not available.
    fn idle(&self) -> i32 {
        if self.is_observed() { self.wanted() - self.available() } else { 0 }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// Whether [`Input::pods`] matters for this deployment.
pub fn needs_pods(deployment: &Deployment) -> bool {
    is_recreate(deployment)
}

pub fn plan(input: &Input<'_>) -> Plan {
    let deployment = input.deployment;
    let Some(spec) = &deployment.spec else { return Plan::nothing() };
    let selector = Selector::of(&spec.selector);
    // A selector that takes in everything would steal the whole namespace.
    if selector.is_empty() {
        return Plan::nothing();
    }
    let (mine, claims) = claims(input, &selector);
    let mut work = Work::new(deployment, mine);
    let leaving = object::is_deleting(deployment);
    let paused = spec.paused.unwrap_or(false);
    if !leaving {
        work.number_new();
        if paused || work.is_scaling() {
            work.scale();
        } else if is_recreate(deployment) {
            work.recreate(input);
        } else {
            work.roll(input);
        }
    }
    let cleanup = if leaving { Vec::new() } else { work.cleanup(paused) };
    assemble(input, &work, claims, cleanup)
}

/// The writes, in order: whose the sets are, the sets, the deployment's revision, what may go, and the status.
fn assemble(input: &Input<'_>, work: &Work<'_>, claims: Vec<Write>, cleanup: Vec<Write>) -> Plan {
    let revision = work.deployment_revision();
    let (status, next) = status::status(input, work);
    let status = Write::status(input.deployment, &input.deployment.status, &Some(status));
    let plan = Plan::nothing().then(Step::together(claims)).look_again(next);
    if input.failure.is_some() && status.is_some() {
        // The same refusal would end this plan before its last step: say so first, then try again.
        return plan.then(Step::together(status.into_iter().collect())).then(Step::together(work.set_writes()));
    }
    let plan = plan.then(Step::together(work.set_writes()));
    match revision {
        // Both are bound to the version that was read: the status follows at the next look, which this write causes.
        Some(revision) => plan.then(Step::together(vec![revision])),
        None => plan.then(Step::together(cleanup)).then(Step::together(status.into_iter().collect())),
    }
}

fn claims(input: &Input<'_>, selector: &Selector) -> (Vec<Arc<ReplicaSet>>, Vec<Write>) {
    let (mut mine, mut writes) = (Vec::new(), Vec::new());
    for set in input.sets {
        match claim::claim(&input.deployment.metadata, selector, &**set) {
            Claim::Owned => mine.push(Arc::clone(set)),
            // It counts from the next look on: this plan must not write it twice.
            Claim::Adopt => writes.push(claim::adopt(input.deployment, &**set)),
            Claim::Release => writes.push(claim::release(input.deployment, &**set)),
            Claim::Foreign => {}
        }
    }
    (mine, writes)
}

impl<'a> Work<'a> {
    fn new(deployment: &'a Deployment, mut mine: Vec<Arc<ReplicaSet>>) -> Work<'a> {
        // Oldest first, which is the order in which old sets give up their pods.
        mine.sort_by(|a, b| age(a).cmp(&age(b)));
        let new = mine.iter().position(|set| revision::has_template(set, deployment));
        let sets = mine.into_iter().map(|read| Member { set: (*read).clone(), read }).collect();
        Work { deployment, limits: Limits::of(deployment), sets, new, created: None, collision: false }
    }

    fn old(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.sets.iter().enumerate().filter(|(i, _)| Some(*i) != self.new)
    }

    fn new_member(&self) -> Option<&Member> {
        self.new.map(|i| &self.sets[i])
    }

    /// What all sets together ask for.
    fn total(&self) -> i32 {
        self.sets.iter().map(Member::wanted).sum::<i32>() + self.created.as_ref().map_or(0, replicas)
    }

    fn desired(&self) -> i32 {
        self.limits.desired
    }

    /// Sets one set's size, and notes on it what the whole was to be, for later proportional scaling.
    fn resize(&mut self, index: usize, size: i32) {
        let (desired, most) = (self.limits.desired, self.limits.most());
        let set = &mut self.sets[index].set;
        set.spec.get_or_insert_default().replicas = Some(size);
        revision::note_sizes(&mut set.metadata, desired, most);
    }

    /// Pods of old sets must be gone before the first new one comes.
    fn recreate(&mut self, input: &Input<'_>) {
        let mut shrinking = false;
        for index in self.old().map(|(i, _)| i).collect::<Vec<_>>() {
            if self.sets[index].wanted() > 0 {
                self.resize(index, 0);
                shrinking = true;
            }
        }
        if shrinking || self.old_pods_left(input) {
            return;
        }
        match self.new {
            None => self.create_new(input, self.desired()),
            Some(index) if self.sets[index].wanted() != self.desired() => self.resize(index, self.desired()),
            Some(_) => {}
        }
    }

    fn old_pods_left(&self, input: &Input<'_>) -> bool {
        let old: Vec<&str> = self.old().map(|(_, m)| object::uid(&*m.read)).collect();
        let of_old = |p: &Pod| object::controller(p).is_some_and(|o| old.contains(&o.uid.as_str()));
        input.pods.iter().any(|p| of_old(p) && !pod::is_finished(p))
    }

    fn create_new(&mut self, input: &Input<'_>, size: i32) {
        if input.namesake.is_some() {
            self.collision = true;
            return;
        }
        let mut set = revision::new_set(self.deployment, size, self.next_revision());
        revision::note_sizes(&mut set.metadata, self.limits.desired, self.limits.most());
        self.created = Some(set);
    }

    /// Creates, updates and resizes, with the events that go with them.
    fn set_writes(&self) -> Vec<Write> {
        let about = reference(self.deployment);
        let mut writes = Vec::new();
        if let Some(set) = &self.created {
            let done = scaled(object::name(set), 0, replicas(set));
            let refused = Note::warning("ReplicaSetCreateError", "Failed to create new replica set: {}");
            writes.push(Write::create(set).told(about.clone(), done, Some(refused)));
        }
        for member in self.sets.iter().filter(|m| *m.read != m.set) {
            let done = scaled(object::name(&member.set), replicas(&member.read), member.wanted());
            writes.push(Write::replace(&member.set).told(about.clone(), done, None));
        }
        writes
    }

    /// The deployment bears the number of its newest set.
    fn deployment_revision(&self) -> Option<Write> {
        let set = self.created.as_ref().or_else(|| self.new_member().map(|m| &m.set))?;
        let number = object::annotation(set, revision::REVISION)?;
        if object::is_deleting(self.deployment)
            || object::annotation(self.deployment, revision::REVISION) == Some(number)
        {
            return None;
        }
        let patch = json!({ "metadata": {
            "resourceVersion": self.deployment.metadata.resource_version,
            "annotations": { revision::REVISION: number },
        }});
        Some(Write::merge(Target::of(self.deployment), Face::Whole, patch))
    }

    /// Old, empty sets beyond the history's limit, once the rollout is over.
    fn cleanup(&self, paused: bool) -> Vec<Write> {
        let spec = self.deployment.spec.as_ref();
        let limit = spec.and_then(|s| s.revision_history_limit).unwrap_or(10);
        if !paused && !status::is_complete(self) || limit == i32::MAX {
            return Vec::new();
        }
        let limit = usize::try_from(limit).unwrap_or(0);
        let mut old: Vec<&Member> = self.old().map(|(_, m)| m).filter(|m| !object::is_deleting(&*m.read)).collect();
        let surplus = old.len().saturating_sub(limit);
        old.sort_by_key(|m| revision::number(&m.set));
        let idle = |m: &&&Member| {
            let status = m.read.status.as_ref();
            let seen = status.and_then(|s| s.observed_generation) >= m.read.metadata.generation;
            m.wanted() == 0 && m.read == Arc::new(m.set.clone()) && status.is_none_or(|s| s.replicas == 0) && seen
        };
        let goes = old.iter().take(surplus).filter(idle);
        goes.map(|m| Write::delete(Target::of(&m.set), DeleteOptions::uid(object::uid(&m.set)))).collect()
    }
}

fn age(set: &ReplicaSet) -> (Option<Timestamp>, &str) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), object::name(set))
}

fn scaled(name: &str, from: i32, to: i32) -> Option<Note> {
    let direction = match to.cmp(&from) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Less => "down",
        std::cmp::Ordering::Greater => "up",
    };
    Some(Note::normal("ScalingReplicaSet", format!("Scaled {direction} replica set {name} from {from} to {to}")))
}
