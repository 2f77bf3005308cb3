//! Telling the API: one write of a pod's status, or its deletion, at a time. Nothing is lost, as what differs is written
//! in the end; nothing is written twice, as only the newest status is.

use std::sync::Arc;

use client::{DeleteOptions, Patch, object};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{
    act::{Outcome, uid},
    plan::Plan,
    status::status,
    worker::Worker,
    world::{Desired, Phase},
};
use crate::context::Context;

/// A status that only tells of progress waits so long for a better one, which then goes out in its place: a pod that
/// starts quickly costs one write instead of three.
const STATUS_PATIENCE: SignedDuration = SignedDuration::from_millis(250);
/// After a failed write of status or of the deletion; it doubles.
const WRITE_RETRY: SignedDuration = SignedDuration::from_millis(200);
const WRITE_RETRY_MAX: SignedDuration = SignedDuration::from_secs(10);

/// What the API has been told, and what it is still to be told.
pub(super) struct Tell {
    pub(super) sent: PodStatus,
    /// Objects from this revision on show what others have made of `sent`.
    pub(super) told_at: u64,
    pub(super) current: PodStatus,
    /// When `current` began to differ from `sent`.
    pub(super) since: Option<Timestamp>,
    pub(super) writing: Option<Write>,
    pub(super) failures: u32,
    pub(super) retry_at: Option<Timestamp>,
}

#[derive(Clone)]
pub(super) enum Write {
    Status(Box<PodStatus>),
    Delete,
}

impl Worker {
    /// Brings the API up to date, one write at a time; gives the time at which to try again.
    pub(super) fn tell(&mut self, plan: &Plan, now: Timestamp) -> Option<Timestamp> {
        let current = status(&self.pod, &self.world, &self.context.node.ips, &self.tell.current, now);
        if current != self.tell.current {
            self.tell.current = current;
            self.save();
        }
        if self.tell.writing.is_some() || self.gone {
            return None;
        }
        if object::revision(&*self.pod) >= self.tell.told_at && contradicted(self.pod.status.as_ref(), &self.tell.sent)
        {
            // While this node was cut off it was given up: what others wrote in its stead has to be put right.
            self.tell.sent = PodStatus::default();
        }
        let differs = self.tell.current != self.tell.sent;
        if let Some(at) = self.tell.retry_at.filter(|at| *at > now) {
            return Some(at);
        }
        let write = if differs {
            let since = *self.tell.since.get_or_insert(now);
            let patient_until = since + STATUS_PATIENCE;
            if self.may_wait() && now < patient_until {
                return Some(patient_until);
            }
            Write::Status(Box::new(self.tell.current.clone()))
        } else if plan.stopped && self.pod.metadata.deletion_timestamp.is_some() && !self.deleted {
            Write::Delete
        } else {
            return None;
        };
        self.tell.writing = Some(write.clone());
        self.tell.since = None;
        self.tasks.spawn(send(Arc::clone(&self.context), Arc::clone(&self.pod), write));
        None
    }

    /// The status only tells that a start is making progress.
    pub(super) fn may_wait(&self) -> bool {
        let quiet = |status: &PodStatus| status.phase.as_deref().is_none_or(|p| p == Phase::Pending.name());
        let trouble = |status: &PodStatus| {
            let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
            all.filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.message.as_ref()).count()
        };
        quiet(&self.tell.current) && quiet(&self.tell.sent) && trouble(&self.tell.current) == trouble(&self.tell.sent)
            || self.starting_up()
    }

    /// Running already, and about to be ready.
    pub(super) fn starting_up(&self) -> bool {
        let ready =
            |status: &PodStatus| status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let young = self.world.containers.values().all(|v| v.attempt == 0 && v.exit().is_none());
        young
            && self.world.desired == Desired::Run
            && self.tell.current.phase.as_deref() == Some(Phase::Running.name())
            && !ready(&self.tell.current)
            && !ready(&self.tell.sent)
    }

    /// `result` has the revision that came of the write.
    pub(super) fn fold_written(&mut self, result: Result<u64, client::Error>, now: Timestamp) {
        let Some(write) = self.tell.writing.take() else { return };
        match result {
            Ok(revision) => {
                match write {
                    Write::Status(status) => (self.tell.sent, self.tell.told_at) = (*status, revision + 1),
                    Write::Delete => self.deleted = true,
                }
                (self.tell.failures, self.tell.retry_at) = (0, None);
            }
            // The object is gone, or is another pod of the same name: the manager will say so.
            Err(error) if error.is_not_found() => {
                if let Write::Status(status) = write {
                    self.tell.sent = *status;
                } else {
                    self.deleted = true;
                }
            }
            Err(error) => {
                let delay = WRITE_RETRY.saturating_mul(1 << self.tell.failures.min(16)).min(WRITE_RETRY_MAX);
                self.tell.failures += 1;
                self.tell.retry_at = Some(now + delay);
                tracing::debug!(pod = uid(&self.pod), %error, "the API server did not take the pod's status");
            }
        }
    }
}

/// One write about the pod. It is addressed to the uid, so that a namesake is never meant.
async fn send(context: Arc<Context>, pod: Arc<Pod>, write: Write) -> Outcome {
    let (namespace, name) = (object::namespace(&*pod), object::name(&*pod));
    let _permit = context.status_writes.acquire().await;
    let result = match write {
        Write::Status(status) => match status_patch(&pod, &status) {
            Ok(patch) => {
                let written = context.client.patch_status::<Pod>(namespace, name, &patch).await;
                written.map(|pod| object::revision(&pod))
            }
            Err(error) => {
                tracing::error!(pod = uid(&pod), %error, "a status cannot be encoded");
                Ok(object::revision(&*pod))
            }
        },
        Write::Delete => {
            let options = DeleteOptions::uid(uid(&pod)).grace(0);
            match context.client.delete::<Pod>(namespace, name, &options).await {
                // Another object has the name: ours is gone.
                Err(error) if error.is_conflict() => Ok(object::revision(&*pod)),
                other => other.map(|()| object::revision(&*pod)),
            }
        }
    };
    Outcome::Written(result)
}

/// Another state is shown of a condition that this node has told about. Pure.
fn contradicted(shown: Option<&PodStatus>, told: &PodStatus) -> bool {
    let conditions = shown.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    told.conditions.iter().flatten().any(|own| {
        let other = conditions.iter().find(|c| c.type_ == own.type_);
        other.is_none_or(|c| c.status != own.status)
    })
}

/// Only what this node owns: conditions of others merge by type, and absent fields of ours are cleared.
fn status_patch(pod: &Pod, status: &PodStatus) -> Result<Patch, serde_json::Error> {
    let mut value = serde_json::to_value(status)?;
    if let Some(fields) = value.as_object_mut() {
        for cleared in ["reason", "message", "podIP", "podIPs"] {
            fields.entry(cleared).or_insert(serde_json::Value::Null);
        }
    }
    Ok(Patch::Strategic(serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": value})))
}
