//! Startup, readiness and liveness probes.
//!
//! - [`state`]: pure: a row of results -> a verdict
//! - [`check`]: one attempt by exec, HTTP, TCP or gRPC
//! - [`run`]: the loop of one probe of one attempt of a container

pub mod check;
pub mod state;

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{sync::mpsc, time::Instant};

use state::{Tally, Verdict};

use crate::{backend::ContainerRuntime, runtime::ContainerId};

/// Until a container has answered its startup or readiness probe once it is asked again this soon, and then at growing
/// intervals, whatever the period: a period of 10 s must not keep a pod waiting that needed 50 ms.
const EAGER_FIRST: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }
}

/// What a probe tells the pod's worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub container: String,
    pub attempt: u32,
    pub kind: ProbeKind,
    /// Set when the verdict changed.
    pub verdict: Option<Verdict>,
    /// Why an attempt failed, to be told in an event.
    pub failure: Option<String>,
}

/// All that one probe needs to know.
#[derive(Clone)]
pub struct Target {
    pub kind: ProbeKind,
    pub probe: Probe,
    pub container: Container,
    pub attempt: u32,
    pub id: ContainerId,
    pub ip: Option<IpAddr>,
    /// How long the container has been running already: after a restart of the agent delays are not repeated.
    pub age: Duration,
}

/// Probes until the task is aborted or nobody listens any more.
pub async fn run(target: Target, runtime: Arc<dyn ContainerRuntime>, reports: mpsc::Sender<Report>) {
    let seconds = |value: Option<i32>, default: i32| {
        Duration::from_secs(u64::try_from(value.unwrap_or(default).max(0)).unwrap_or_default())
    };
    let period = seconds(target.probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(target.probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let delay = seconds(target.probe.initial_delay_seconds, 0).saturating_sub(target.age);
    let mut tally = Tally::new(target.kind, &target.probe);
    let mut eager = (target.kind != ProbeKind::Liveness && delay.is_zero()).then_some(EAGER_FIRST);
    let mut due = Instant::now() + delay;
    loop {
        tokio::time::sleep_until(due).await;
        let result = check::attempt(&target, runtime.as_ref(), timeout).await;
        due = (due + period).max(Instant::now());
        if let (Err(_), Some(pause)) = (&result, eager) {
            // These early attempts do not count: a slow start must not look like a failure.
            let soon = Instant::now() + pause;
            eager = (pause * 2 < period).then_some(pause * 2);
            due = soon;
            continue;
        }
        eager = None;
        let verdict = tally.count(result.is_ok());
        let failure = result.err().map(|why| format!("{} probe failed: {why}", target.kind.name()));
        if verdict.is_some() || failure.is_some() {
            let container = target.container.name.clone();
            let report = Report { container, attempt: target.attempt, kind: target.kind, verdict, failure };
            if reports.send(report).await.is_err() {
                return;
            }
        }
        if target.kind == ProbeKind::Startup && verdict == Some(Verdict::Passing) {
            return;
        }
    }
}
