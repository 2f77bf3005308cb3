//! What controllers ask about a pod.

use std::time::Duration;

use client::pod::Pod;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

pub fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready")
}

pub fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|c| c.status == "True")
}

/// Ran to its end, one way or the other.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as a replica: neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// When the pod became ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod).filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    /// Ready, and available after this time if it stays so.
    In(Duration),
    Unready,
}

/// Whether the pod has been ready for long enough.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::Unready;
    }
    if min_ready_seconds <= 0 {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else {
        return Availability::In(Duration::from_secs(min_ready_seconds.unsigned_abs().into()));
    };
    match remaining(since, Duration::from_secs(min_ready_seconds.unsigned_abs().into()), now) {
        None => Availability::Available,
        Some(left) => Availability::In(left),
    }
}

/// What is left at `now` of a span that began at `since`; none when it has passed.
pub fn remaining(since: Timestamp, span: Duration, now: Timestamp) -> Option<Duration> {
    let passed = now.duration_since(since);
    let span = jiff::SignedDuration::try_from(span).unwrap_or(jiff::SignedDuration::MAX);
    let left = span.saturating_sub(passed);
    Duration::try_from(left).ok().filter(|d| !d.is_zero())
}

/// The highest count of restarts among the pod's containers.
pub fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.map(|c| c.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_of_a_span() {
        let at = |s: i64| Timestamp::from_second(s).expect("a time");
        let ten = Duration::from_secs(10);
        assert_eq!(remaining(at(100), ten, at(104)), Some(Duration::from_secs(6)));
        assert_eq!(remaining(at(100), ten, at(110)), None);
        assert_eq!(remaining(at(100), ten, at(200)), None);
    }
}
