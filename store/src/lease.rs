//! When leases end. Only the leader counts, from when it saw a lease granted or renewed; a new leader gives every
//! lease its full time again, so a change of leader never ends one early. Time comes in as milliseconds of a clock
//! that only goes forward.

use std::collections::{BTreeMap, BTreeSet};

use crate::LeaseId;

#[derive(Debug, Default)]
pub struct LeaseClock {
    deadlines: BTreeMap<LeaseId, u64>,
    order: BTreeSet<(u64, LeaseId)>,
}

impl LeaseClock {
    pub fn set(&mut self, id: LeaseId, deadline: u64) {
        self.remove(id);
        self.deadlines.insert(id, deadline);
        self.order.insert((deadline, id));
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(deadline) = self.deadlines.remove(&id) {
            self.order.remove(&(deadline, id));
        }
    }

    pub fn clear(&mut self) {
        self.deadlines.clear();
        self.order.clear();
    }

    /// The leases that have ended, at most `limit`. Each is put off by `again`, in case its revocation gets lost.
    pub fn expired(&mut self, now: u64, limit: usize, again: u64) -> Vec<LeaseId> {
        let ended: Vec<LeaseId> =
            self.order.iter().take_while(|(deadline, _)| *deadline <= now).take(limit).map(|&(_, id)| id).collect();
        for &id in &ended {
            self.set(id, now + again);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_end_in_order_and_once() {
        let mut clock = LeaseClock::default();
        for (id, deadline) in [(1, 30), (2, 10), (3, 20)] {
            clock.set(LeaseId(id), deadline);
        }
        clock.set(LeaseId(3), 40);
        assert_eq!(clock.expired(5, 9, 100), []);
        assert_eq!(clock.expired(30, 9, 100), [LeaseId(2), LeaseId(1)]);
        assert_eq!(clock.expired(30, 9, 100), [], "they are put off");
        clock.remove(LeaseId(1));
        assert_eq!(clock.expired(200, 1, 100), [LeaseId(3)], "no more than asked for");
        assert_eq!(clock.expired(200, 9, 100), [LeaseId(2)]);
        clock.clear();
        assert_eq!(clock.expired(u64::MAX - 1, 9, 1), [], "cleared");
    }
}
