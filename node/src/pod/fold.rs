//! Taking in what has happened: ends of actions, what the runtime shows, what probes report.

use std::sync::{Arc, atomic::Ordering};

use jiff::{SignedDuration, Timestamp};

use super::{
    act::{self, Outcome, Ready, Seen, StartFailure, note, uid},
    error_text as chain,
    plan::NoteKind,
    recall::exit_seen,
    worker::{Looking, Worker},
    world::{ContainerNow, Exit, Failure, ImageStep, KillWish, Step, StopStage},
};
use crate::{
    image::ImageError,
    probe::{ProbeKind, Report, state::Verdict},
    runtime::RunState,
};

/// Config maps, secrets and tokens in volumes are looked at again so often.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);

impl Worker {
    /// Takes in how an action ended.
    pub(super) fn fold(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        let now = Timestamp::now();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // Which action it was is not known any more: everything under way is looked at as failed.
                tracing::error!(pod = uid(&self.pod), %error, "an action broke down");
                return self.fail_all(now);
            }
        };
        match outcome {
            Outcome::Volumes(result) => self.fold_volumes(result, now),
            Outcome::Sandbox(Ok(ips)) => {
                self.world.sandbox = Step::Done;
                self.world.ips = ips;
                self.save();
            }
            Outcome::Sandbox(Err(message)) => {
                let tries = self.world.sandbox.tries();
                self.world.sandbox = Step::Failed(Failure::new("FailedCreatePodSandBox", message, tries, now));
            }
            Outcome::Image { container, result } => self.fold_image(&container, result, now),
            Outcome::Started { container, attempt, result } => self.fold_start(&container, attempt, result, now),
            Outcome::PreStopDone { container, attempt } => {
                let view = self.world.view_mut(&container);
                if let Some(stopping) = view.stopping.as_mut().filter(|s| s.stage == StopStage::PreStop)
                    && view.attempt == attempt
                {
                    stopping.stage = StopStage::PreStopDone;
                }
            }
            Outcome::Signalled => {}
            Outcome::Checked { alive } => {
                if !alive && self.world.sandbox == Step::Done && self.world.teardown == Step::Idle {
                    self.lose_sandbox(now);
                }
            }
            Outcome::TornDown(Ok(())) => self.world.teardown = Step::Done,
            Outcome::TornDown(Err(message)) => {
                tracing::warn!(pod = uid(&self.pod), message, "the pod cannot be removed yet");
                let tries = self.world.teardown.tries();
                self.world.teardown = Step::Failed(Failure::new("FailedKillPod", message, tries, now));
            }
            Outcome::Looked(result) => {
                if std::mem::replace(&mut self.looking, Looking::No) == Looking::Again {
                    self.look();
                }
                match result {
                    Ok(seen) => self.fold_seen(seen),
                    Err(error) => tracing::debug!(pod = uid(&self.pod), %error, "the runtime does not answer"),
                }
            }
            Outcome::Written(result) => self.fold_written(result, now),
        }
    }

    pub(super) fn fail_all(&mut self, now: Timestamp) {
        let broken = |step: &mut Step| {
            if matches!(step, Step::Doing { .. }) {
                let tries = step.tries();
                *step = Step::Failed(Failure::new("InternalError", "an action broke down".to_owned(), tries, now));
            }
        };
        broken(&mut self.world.volumes);
        broken(&mut self.world.sandbox);
        broken(&mut self.world.teardown);
        self.world.containers.values_mut().for_each(|view| {
            broken(&mut view.start);
            if let ImageStep::Pulling { tries } = view.image {
                let message = "the pull broke down".to_owned();
                view.image = ImageStep::Failed(Failure::pull("ErrImagePull", message, tries, now));
            }
        });
        self.looking = Looking::No;
        self.tell.writing = None;
        self.look();
    }

    pub(super) fn fold_volumes(&mut self, result: Result<Ready, String>, now: Timestamp) {
        let refreshing = self.world.volumes == Step::Done;
        match result {
            Ok(ready) => {
                self.prepared = ready.prepared;
                self.tokens = ready.tokens;
                self.sources = ready.sources;
                self.world.volumes = Step::Done;
                let volumes = self.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
                let changing = |v: &k8s_openapi::api::core::v1::Volume| {
                    v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
                };
                if volumes.into_iter().any(changing) {
                    self.refresh_at = Some(now + REFRESH);
                }
            }
            // Containers go on with what they have.
            Err(message) if refreshing => {
                tracing::debug!(pod = uid(&self.pod), message, "volumes could not be brought up to date");
                self.refresh_at = Some(now + REFRESH);
            }
            Err(message) => {
                let tries = self.world.volumes.tries();
                self.context.events.pod(&self.pod, note(NoteKind::Warning, "FailedMount", message.clone(), None));
                self.world.volumes = Step::Failed(Failure::new("FailedMount", message, tries, now));
            }
        }
    }

    pub(super) fn refresh(&mut self) {
        let due = self.refresh_at.is_some_and(|at| at <= Timestamp::now());
        if due && self.world.volumes == Step::Done && self.world.teardown == Step::Idle {
            self.refresh_at = None;
            let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
            self.tasks.spawn(act::volumes(context, pod, self.tokens.clone()));
        } else if due {
            self.refresh_at = None;
        }
    }

    pub(super) fn fold_image(
        &mut self,
        container: &str,
        result: Result<crate::image::Image, ImageError>,
        now: Timestamp,
    ) {
        let view = self.world.view_mut(container);
        let tries = if let ImageStep::Pulling { tries } = view.image { tries } else { 0 };
        view.image = match result {
            Ok(image) => ImageStep::Present { reference: image.repo_digest(), id: image.id },
            Err(error) => {
                let reason = match &error {
                    ImageError::InvalidName { .. } => "InvalidImageName",
                    ImageError::NeverPull(_) => "ErrImageNeverPull",
                    ImageError::Pull { .. }
                    | ImageError::Corrupt { .. }
                    | ImageError::Unpack { .. }
                    | ImageError::Store { .. } => "ErrImagePull",
                };
                ImageStep::Failed(Failure::pull(reason, chain(&error), tries, now))
            }
        };
    }

    pub(super) fn fold_start(
        &mut self,
        container: &str,
        attempt: u32,
        result: Result<(), StartFailure>,
        now: Timestamp,
    ) {
        let id = self.id(container).hex();
        let view = self.world.view_mut(container);
        if view.attempt != attempt {
            return;
        }
        let tries = view.start.tries();
        match result {
            Ok(()) => view.start = Step::Done,
            Err(StartFailure::Retry { reason, message }) => {
                view.start = Step::Failed(Failure::new(reason, message, tries, now));
            }
            Err(StartFailure::Dead(message)) => {
                view.start = Step::Done;
                view.now = ContainerNow::Exited(Exit {
                    id,
                    attempt,
                    code: 128,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: Some(message),
                    started_at: None,
                    finished_at: now,
                });
            }
            Err(StartFailure::Hook(message)) => {
                view.start = Step::Done;
                view.kill = Some(KillWish { message: format!("FailedPostStartHook: {message}"), grace_seconds: None });
            }
            Err(StartFailure::NoSandbox) => {
                view.start = Step::Idle;
                self.signals.lost.store(true, Ordering::Release);
            }
        }
        if matches!(self.world.view(container).now, ContainerNow::Absent)
            && self.world.view(container).start == Step::Done
        {
            // It runs; the look that follows tells since when, or that it has ended already.
            self.world.view_mut(container).now =
                ContainerNow::Running { id: self.id(container).hex(), started_at: now };
        }
        self.look();
    }

    pub(super) fn fold_seen(&mut self, seen: Vec<Seen>) {
        for Seen { state, message } in seen {
            let Some(view) = self.world.containers.get_mut(&state.name) else { continue };
            // An attempt that is over is history; one that has not been begun here is not ours to judge.
            if state.attempt != view.attempt || view.exit().is_some() {
                continue;
            }
            match &state.state {
                RunState::Created => {}
                RunState::Running { started_at } => {
                    view.now = ContainerNow::Running { id: state.id.hex(), started_at: *started_at };
                }
                RunState::Exited(exit) => {
                    view.now = ContainerNow::Exited(exit_seen(&state, exit, message));
                    view.stopping = None;
                    view.kill = None;
                    if view.start != (Step::Doing { tries: view.start.tries() }) {
                        view.start = Step::Done;
                    }
                }
            }
        }
    }

    /// Takes in what a probe found.
    pub(super) fn heed(&mut self, report: Report) {
        if let Some(message) = report.failure {
            let note = note(NoteKind::Warning, "Unhealthy", message, Some(&report.container));
            self.context.events.pod(&self.pod, note);
        }
        let Some(member) = self.member(&report.container) else { return };
        let own_grace = match report.kind {
            ProbeKind::Startup => member.spec.startup_probe.as_ref(),
            ProbeKind::Liveness => member.spec.liveness_probe.as_ref(),
            ProbeKind::Readiness => None,
        };
        let grace_seconds = own_grace.and_then(|p| p.termination_grace_period_seconds);
        let view = self.world.view_mut(&report.container);
        let Some(verdict) = report.verdict.filter(|_| view.attempt == report.attempt && view.running()) else { return };
        let wish = |what: &str| {
            let message = format!("Container {} failed {what} probe, will be restarted", report.container);
            Some(KillWish { message, grace_seconds })
        };
        match (report.kind, verdict) {
            (ProbeKind::Startup, Verdict::Passing) => view.probes.startup = Some(true),
            (ProbeKind::Startup, Verdict::Failing) => view.kill = wish("startup"),
            (ProbeKind::Readiness, verdict) => view.probes.readiness = Some(verdict == Verdict::Passing),
            (ProbeKind::Liveness, Verdict::Passing) => {}
            (ProbeKind::Liveness, Verdict::Failing) => view.kill = wish("liveness"),
        }
    }
}
