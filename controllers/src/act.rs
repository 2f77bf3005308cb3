//! Carries out plans: writes, their events, and the wait until the caches show what was written.

use client::{Client, Content, Patch};
use futures_util::{StreamExt, future::BoxFuture, stream};
use http::Method;
use serde_json::Value;

use crate::{
    caches::{Caches, Trace, Written},
    events::Recorder,
    plan::{Action, Face, Guard, Pace, Plan, Step, Target, Write},
    queue::Outcome,
};

/// Writes of one plan that are under way at a time: enough for the store to put many into one sync of the disk.
const MAX_PARALLEL: usize = 64;

#[derive(Clone)]
pub struct Actor {
    pub client: Client,
    pub caches: Caches,
    pub recorder: Recorder,
}

/// Why a write was not carried out.
#[derive(Debug)]
enum Refusal {
    Stale,
    /// The namespace is on its way out: nothing is to be created there, and that is in order.
    Leaving,
    Failed(String),
}

impl Actor {
    /// Carries out a plan of the named controller, up to the first step that fails.
    pub async fn carry_out(&self, controller: &'static str, plan: Plan) -> Outcome {
        let mut written = Vec::new();
        let mut end = Ok(());
        for step in &plan.steps {
            end = self.step(controller, step, &mut written).await;
            if end.is_err() {
                break;
            }
        }
        for write in &written {
            self.caches.show(write).await;
        }
        match end {
            Ok(()) | Err(Refusal::Leaving) => Outcome::Done { after: plan.after },
            Err(Refusal::Stale) => Outcome::Stale,
            Err(Refusal::Failed(text)) => Outcome::Failed(text),
        }
    }

    async fn step(&self, controller: &'static str, step: &Step, written: &mut Vec<Written>) -> Result<(), Refusal> {
        let mut writes = step.writes.as_slice();
        let mut batch = match step.pace {
            Pace::Together => writes.len(),
            Pace::SlowStart => 1,
        };
        while !writes.is_empty() {
            let (now, later) = writes.split_at(batch.min(writes.len()));
            // Boxed one by one: the compiler cannot see that a stream of borrowing futures may move between threads.
            let mut pending: Vec<BoxFuture<'_, _>> = Vec::with_capacity(now.len());
            for write in now {
                pending.push(Box::pin(self.write(controller, write)));
            }
            let mut answers = stream::iter(pending).buffer_unordered(MAX_PARALLEL);
            let mut end = Ok(());
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(done) => written.extend(done),
                    Err(refusal) => end = Err(refusal),
                }
            }
            end?;
            (writes, batch) = (later, batch.saturating_mul(2));
        }
        Ok(())
    }

    async fn write(&self, controller: &'static str, write: &Write) -> Result<Option<Written>, Refusal> {
        if let Some(guard) = &write.guard {
            self.check(guard).await?;
        }
        let answer = self.send(&write.action).await;
        if let Some(told) = &write.told {
            match &answer {
                Ok(object) => {
                    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                    self.recorder.record(controller, &told.about, told.done.as_ref(), name);
                }
                Err(error) if worth_telling(error) => {
                    self.recorder.record(controller, &told.about, told.refused.as_ref(), &error.to_string());
                }
                Err(_) => {}
            }
        }
        match answer {
            Ok(object) => Ok(written(&write.action, &object)),
            // What was to go is gone: that is what was wanted.
            Err(error) if error.is_not_found() && matches!(write.action, Action::Delete { .. }) => Ok(None),
            Err(error) => Err(refusal(&error)),
        }
    }

    async fn check(&self, guard: &Guard) -> Result<(), Refusal> {
        let owner: Value = match self.client.call(Method::GET, guard.target.path(), None).await {
            Ok(owner) => owner,
            Err(error) => return Err(refusal(&error)),
        };
        let lives = owner.pointer("/metadata/deletionTimestamp").is_none()
            && owner.pointer("/metadata/uid").and_then(Value::as_str) == Some(guard.uid.as_str());
        if lives { Ok(()) } else { Err(Refusal::Stale) }
    }

    async fn send(&self, action: &Action) -> client::Result<Value> {
        match action {
            Action::Create { resource, object } => {
                let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
                let path = Target::named(*resource, namespace, "").path();
                self.client.call(Method::POST, path, Some(Content::json(object)?)).await
            }
            Action::Replace { target, face, object } => {
                self.client.call(Method::PUT, path(target, *face), Some(Content::json(object)?)).await
            }
            Action::Merge { target, face, patch } => {
                let content = Content::patch(&Patch::Merge(patch.clone()))?;
                self.client.call(Method::PATCH, path(target, *face), Some(content)).await
            }
            Action::Delete { target, options } => {
                self.client.call(Method::DELETE, target.path(), Some(Content::json(options)?)).await
            }
            Action::DeleteAll { target } => self.client.call(Method::DELETE, target.path(), None).await,
        }
    }
}

fn path(target: &Target, face: Face) -> String {
    match face {
        Face::Whole => target.path(),
        Face::Status => target.path() + "/status",
        Face::Finalize => target.path() + "/finalize",
    }
}

/// Conflicts and what has become pointless in the meantime are everyday matters.
fn worth_telling(error: &client::Error) -> bool {
    matches!(refusal(error), Refusal::Failed(_))
}

fn refusal(error: &client::Error) -> Refusal {
    let causes = error.status().and_then(|s| s.details.as_ref()?.causes.as_ref());
    let leaving = causes.into_iter().flatten().any(|c| c.reason.as_deref() == Some("NamespaceTerminating"));
    if leaving {
        return Refusal::Leaving;
    }
    // Something of this name is there already, or no longer there: the caches will say so in a moment.
    if error.is_conflict() || error.is_already_exists() || error.is_not_found() {
        return Refusal::Stale;
    }
    Refusal::Failed(error.to_string())
}

fn written(action: &Action, answer: &Value) -> Option<Written> {
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let at = || Trace::At(text("/metadata/resourceVersion").parse().unwrap_or(0));
    match action {
        Action::Create { resource, .. } => {
            let target = Target::named(*resource, text("/metadata/namespace"), text("/metadata/name"));
            Some(Written { target, trace: at() })
        }
        Action::Replace { target, .. } | Action::Merge { target, .. } => {
            Some(Written { target: target.clone(), trace: at() })
        }
        Action::Delete { target, options } => {
            let uid = options.preconditions.as_ref()?.uid.clone()?;
            Some(Written { target: target.clone(), trace: Trace::Leaving(uid) })
        }
        Action::DeleteAll { .. } => None,
    }
}
