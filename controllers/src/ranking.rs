//! Which of a set's pods goes first when there are too many.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
    sync::Arc,
};

use client::pod::Pod;
use jiff::Timestamp;

use crate::pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// How many active pods of the same family stand on each node: doubled-up pods go before lonely ones.
pub type Crowding = BTreeMap<String, usize>;

pub fn crowding<'a>(family: impl IntoIterator<Item = &'a Arc<Pod>>) -> Crowding {
    let mut crowding = Crowding::new();
    for pod in family {
        let node = pod::node(pod);
        if pod::is_active(pod) && !node.is_empty() {
            *crowding.entry(node.to_owned()).or_default() += 1;
        }
    }
    crowding
}

/// The `count` pods whose loss hurts least, the first to go first.
pub fn to_delete(pods: &[Arc<Pod>], count: usize, crowding: &Crowding, now: Timestamp) -> Vec<Arc<Pod>> {
    if count == 0 {
        return Vec::new();
    }
    let mut ranked: Vec<(Rank, &Arc<Pod>)> = pods.iter().map(|p| (rank(p, crowding, now), p)).collect();
    ranked.sort_by(|(a, p), (b, q)| a.cmp(b).then_with(|| by_identity(p, q)));
    ranked.into_iter().take(count).map(|(_, p)| Arc::clone(p)).collect()
}

/// Compares field by field, in upstream's documented order; the lesser goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i64,
    crowded: Reverse<usize>,
    /// Ages in powers of two: pods of about the same age are alike, so that the choice among them does not always fall
    /// on the newest node's.
    ready_age: u32,
    restarts: Reverse<i32>,
    age: u32,
}

fn rank(pod: &Pod, crowding: &Crowding, now: Timestamp) -> Rank {
    let node = pod::node(pod);
    let cost = client::object::annotation(pod, DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0);
    Rank {
        assigned: !node.is_empty(),
        phase: match pod::phase(pod) {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready: pod::is_ready(pod),
        cost,
        crowded: Reverse(crowding.get(node).copied().unwrap_or(0)),
        ready_age: pod::ready_since(pod).map_or(0, |t| magnitude(t, now)),
        restarts: Reverse(pod::restarts(pod)),
        age: pod.metadata.creation_timestamp.as_ref().map_or(0, |t| magnitude(t.0, now)),
    }
}

fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let seconds = now.duration_since(since).as_secs().max(0).unsigned_abs();
    seconds.checked_ilog2().map_or(0, |m| m + 1)
}

/// Any fixed order that does not follow names: uids are random.
fn by_identity(a: &Pod, b: &Pod) -> Ordering {
    a.metadata.uid.cmp(&b.metadata.uid)
}

#[cfg(test)]
mod tests {
    use client::pod::Restarts;

    use super::*;
    use crate::testing::{at, pod, running, time};

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| p.metadata.name.as_deref().expect("a name")).collect()
    }

    #[test]
    fn the_least_useful_goes_first() {
        let created = |mut p: Pod, second: i64| {
            p.metadata.creation_timestamp = Some(time(second));
            p
        };
        let restarted = |mut p: Pod, restart_count: i32| {
            p.status.as_mut().expect("a status").container_statuses = Some(vec![Restarts { restart_count }]);
            p
        };
        let cheap = |mut p: Pod| {
            p.metadata.annotations = Some(crate::testing::labels(&[(DELETION_COST, "-5")]));
            p
        };
        let mut pending = pod("pending");
        pending.spec.as_mut().expect("a spec").node_name = Some("a".into());
        let pods: Vec<Arc<Pod>> = [
            created(running("old", "a", Some(100)), 50),
            created(running("new", "a", Some(100)), 990),
            restarted(running("restarted", "a", Some(100)), 4),
            running("just-ready", "a", Some(995)),
            running("crowded", "b", Some(1)),
            cheap(running("cheap", "a", Some(1))),
            running("unready", "a", None),
            pending,
            pod("unassigned"),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let crowding = Crowding::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let order = to_delete(&pods, pods.len(), &crowding, at(1000));
        assert_eq!(
            names(&order),
            ["unassigned", "pending", "unready", "cheap", "crowded", "just-ready", "restarted", "new", "old"]
        );
        assert_eq!(names(&to_delete(&pods, 2, &crowding, at(1000))), ["unassigned", "pending"]);
    }
}
