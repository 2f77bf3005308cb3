//! What a deployment tells about itself: counts, and whether it gets on.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{Input, Work, replicas};
use crate::pod::remaining;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The status as the sets show it now, and when it will change by the mere passing of time.
pub fn status(input: &Input<'_>, work: &Work<'_>) -> (DeploymentStatus, Option<Duration>) {
    let old = input.deployment.status.clone().unwrap_or_default();
    let mut status = counts(work, &old);
    let leaving = client::object::is_deleting(input.deployment);
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let enough = status.available_replicas.unwrap_or(0) >= work.limits.least_available();
    let available = if enough {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", input.now)
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            input.now,
        )
    };
    set(&mut conditions, available);
    let mut next = None;
    if !leaving {
        progress(input, work, &old, &status, &mut conditions);
        replica_failure(work, &mut conditions, input.now);
        next = deadline(input, work, &status, &conditions);
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    (status, next)
}

fn counts(work: &Work<'_>, old: &DeploymentStatus) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> Option<i32>| work.sets.iter().filter_map(|m| count(&m.read)).sum::<i32>();
    let total = sum(|s| s.status.as_ref().map(|s| s.replicas));
    let available = sum(|s| s.status.as_ref()?.available_replicas);
    let terminating = work.sets.iter().map(|m| m.read.status.as_ref()?.terminating_replicas).sum::<Option<i32>>();
    let updated = work.new_member().and_then(|m| m.read.status.as_ref()).map_or(0, |s| s.replicas);
    let asked: i32 = work.sets.iter().map(|m| m.wanted()).sum::<i32>() + work.created.as_ref().map_or(0, replicas);
    let collisions = old.collision_count.unwrap_or(0) + i32::from(work.collision);
    DeploymentStatus {
        observed_generation: work.deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|s| s.status.as_ref()?.ready_replicas)),
        available_replicas: some(available),
        unavailable_replicas: some((asked - available).max(0)),
        terminating_replicas: terminating,
        collision_count: if old.collision_count.is_some() { Some(collisions) } else { some(collisions) },
        conditions: None,
    }
}

/// Zero is left out on the wire.
fn some(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// Everything asked for is of the new template, and available.
pub fn is_complete(work: &Work<'_>) -> bool {
    let counts = counts(work, &DeploymentStatus::default());
    let unchanged = work.created.is_none() && work.sets.iter().all(|m| *m.read == m.set);
    unchanged && complete(work, &counts)
}

fn complete(work: &Work<'_>, status: &DeploymentStatus) -> bool {
    let all = |count: Option<i32>| count.unwrap_or(0) == work.desired();
    all(status.updated_replicas) && all(status.replicas) && all(status.available_replicas)
}

/// A deployment without a deadline tells nothing of its progress.
fn deadline_of(work: &Work<'_>) -> Option<Duration> {
    let seconds = work.deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).unwrap_or(600);
    (seconds != i32::MAX).then(|| Duration::from_secs(seconds.unsigned_abs().into()))
}

fn progress(
    input: &Input<'_>,
    work: &Work<'_>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
) {
    if deadline_of(work).is_none() {
        conditions.retain(|c| c.type_ != PROGRESSING);
        return;
    }
    let now = input.now;
    let reason = conditions.iter().find(|c| c.type_ == PROGRESSING).and_then(|c| c.reason.clone());
    if paused(input) {
        // A timed-out deployment stays so, as the pause has not mended it.
        if reason.as_deref() != Some(TIMED_OUT) {
            set(conditions, condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now));
        }
        return;
    }
    if reason.as_deref() == Some(PAUSED) {
        set(conditions, condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", now));
    }
    let new = work.created.as_ref().or_else(|| work.new_member().map(|m| &m.set));
    let name = new.map_or_else(|| super::new_name(work.deployment), |s| client::object::name(s).to_owned());
    if let (Some(text), None) = (input.failure, work.new) {
        set(conditions, condition(PROGRESSING, "False", "ReplicaSetCreateError", text, now));
        return;
    }
    if work.created.is_some() {
        let text = format!("Created new replica set \"{name}\"");
        set(conditions, condition(PROGRESSING, "True", "NewReplicaSetCreated", &text, now));
        return;
    }
    if reason.is_none() && work.new.is_some() {
        let text = format!("Found new replica set \"{name}\"");
        set(conditions, condition(PROGRESSING, "True", "FoundNewReplicaSet", &text, now));
    }
    // Once complete, a deployment stays so until its template changes: scaling is no rollout.
    let settled = status.replicas == status.updated_replicas && reason.as_deref() == Some(NEW_SET_AVAILABLE);
    if settled {
        return;
    }
    if complete(work, status) {
        let text = format!("ReplicaSet \"{name}\" has successfully progressed.");
        set(conditions, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, &text, now));
    } else if moved(old, status) {
        let text = format!("ReplicaSet \"{name}\" is progressing.");
        renew(conditions, condition(PROGRESSING, "True", "ReplicaSetUpdated", &text, now));
    } else if timed_out(work, conditions, now) {
        let text = format!("ReplicaSet \"{name}\" has timed out progressing.");
        set(conditions, condition(PROGRESSING, "False", TIMED_OUT, &text, now));
    }
}

fn paused(input: &Input<'_>) -> bool {
    input.deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
}

/// The rollout got on since the last status: more of the new, fewer of the old, more ready or available.
fn moved(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn progressing(conditions: &[DeploymentCondition]) -> Option<&DeploymentCondition> {
    conditions.iter().find(|c| c.type_ == PROGRESSING)
}

/// What is left of the deadline; none when it has passed or does not run.
fn left(work: &Work<'_>, conditions: &[DeploymentCondition], now: Timestamp) -> Option<Duration> {
    let since = progressing(conditions)?.last_update_time.as_ref()?.0;
    remaining(since, deadline_of(work)?, now)
}

fn runs(conditions: &[DeploymentCondition]) -> bool {
    progressing(conditions)
        .is_some_and(|c| !matches!(c.reason.as_deref(), Some(NEW_SET_AVAILABLE | TIMED_OUT | PAUSED)))
}

fn timed_out(work: &Work<'_>, conditions: &[DeploymentCondition], now: Timestamp) -> bool {
    runs(conditions) && left(work, conditions, now).is_none()
}

fn deadline(
    input: &Input<'_>,
    work: &Work<'_>,
    status: &DeploymentStatus,
    conditions: &[DeploymentCondition],
) -> Option<Duration> {
    if complete(work, status) || !runs(conditions) {
        return None;
    }
    left(work, conditions, input.now)
}

/// Passes on what a set could not do: the new one's failure before any old one's.
fn replica_failure(work: &Work<'_>, conditions: &mut Vec<DeploymentCondition>, now: Timestamp) {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == REPLICA_FAILURE && c.status == "True").cloned()
    };
    let new = work.new_member().and_then(|m| failure(&m.read));
    match new.or_else(|| work.old().find_map(|(_, m)| failure(&m.read))) {
        None => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        Some(c) => {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set(conditions, condition(REPLICA_FAILURE, "True", &reason, &message, now));
        }
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in place; one that says the same already stays as it is, with its times.
fn set(conditions: &mut Vec<DeploymentCondition>, new: DeploymentCondition) {
    let same = |c: &DeploymentCondition| c.type_ == new.type_ && c.status == new.status && c.reason == new.reason;
    if !conditions.iter().any(same) {
        renew(conditions, new);
    }
}

/// Puts a condition in place with a fresh time of update; the time of transition changes only with the status.
fn renew(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(at) = conditions.iter().position(|c| c.type_ == new.type_) {
        let old = conditions.remove(at);
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time;
        }
    }
    conditions.push(new);
}
