//! What a run has shown: how long nobody could write, and the figures at the end.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{
    clients::PROBES,
    history::{Moment, Operation, Outcome, Request},
    schedule::{Kind, Role},
};

/// A server that ended, by our hand, while nothing else was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    pub kind: Kind,
    pub role: Role,
    pub server: usize,
    pub at: Moment,
    /// When it was started again.
    pub until: Moment,
}

/// An acknowledged write of a prober.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub begun: Moment,
    pub ended: Moment,
    pub server: usize,
}

/// All of them, by when they came.
pub fn acks(operations: &[Operation]) -> Vec<Ack> {
    let probe = |operation: &&Operation| {
        let (Request::Update { name, .. } | Request::Create { name, .. }) = operation.request else { return false };
        name >= PROBES && matches!(operation.outcome, Outcome::Wrote(_))
    };
    let ack = |operation: &Operation| Ack { begun: operation.begun, ended: operation.ended, server: operation.server };
    let mut acks: Vec<Ack> = operations.iter().filter(probe).map(ack).collect();
    acks.sort_unstable_by_key(|ack| ack.ended);
    acks
}

/// From a death to the first acknowledged write that began after it, through whoever is left.
pub fn unavailable(acks: &[Ack], death: &Death) -> Option<Moment> {
    let from = acks.partition_point(|ack| ack.ended <= death.at);
    let first = acks[from..].iter().find(|ack| ack.begun >= death.at && ack.server != death.server)?;
    Some(first.ended - death.at)
}

/// The longest time between two acknowledged writes, not counting those through one server, within a window.
pub fn longest_gap(acks: &[Ack], without: Option<usize>, from: Moment, to: Moment) -> Moment {
    let (mut last, mut longest) = (from, 0);
    let start = acks.partition_point(|ack| ack.ended <= from);
    for ack in acks[start..].iter().take_while(|ack| ack.ended <= to) {
        if Some(ack.server) != without {
            longest = longest.max(ack.ended - last);
            last = ack.ended;
        }
    }
    longest.max(to.saturating_sub(last))
}

/// Of values in their order.
pub fn percentile(sorted: &[Moment], percent: usize) -> Option<Moment> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

/// How long after a follower's death a gap would still be its fault.
const AFTERMATH: Moment = 3_000_000;
/// The longest that a leader's death may keep everybody from writing, in 99 of 100 cases.
const MOST_UNAVAILABLE: Moment = 2_000_000;
/// How much longer than the longest gap without any fault one after a follower's death may be.
const MOST_OF_FOLLOWER: Moment = 300_000;
/// Fewer deaths of leaders say nothing about their 99th percentile.
const ENOUGH: usize = 20;

#[derive(Default)]
pub struct Report {
    pub seed: u64,
    pub faults: BTreeMap<(Kind, Role), usize>,
    pub deaths: Vec<Death>,
    /// When nothing was wrong.
    pub calm: Vec<(Moment, Moment)>,
    pub operations: BTreeMap<(&'static str, &'static str), usize>,
    pub acks: Vec<Ack>,
    pub told: usize,
    pub violations: Vec<String>,
    pub took: Duration,
}

impl Report {
    fn leaders(&self, kind: Kind) -> Vec<Moment> {
        let deaths = self.deaths.iter().filter(|death| (death.role, death.kind) == (Role::Leader, kind));
        // One that nobody wrote after until it was back counts until then.
        let mut all: Vec<Moment> = deaths
            .map(|death| unavailable(&self.acks, death).unwrap_or(death.until.saturating_sub(death.at)))
            .collect();
        all.sort_unstable();
        all
    }

    fn followers(&self) -> Vec<Moment> {
        let deaths = self.deaths.iter().filter(|death| death.role == Role::Follower);
        let mut gaps: Vec<Moment> = deaths
            .map(|death| {
                let to = death.until.min(death.at + AFTERMATH);
                longest_gap(&self.acks, Some(death.server), death.at, to)
            })
            .collect();
        gaps.sort_unstable();
        gaps
    }

    fn undisturbed(&self) -> Moment {
        let gaps = self.calm.iter().map(|(from, to)| longest_gap(&self.acks, None, *from, *to));
        gaps.max().unwrap_or_default()
    }

    /// What is too slow. Only a long run can say.
    pub fn slow(&self) -> Vec<String> {
        let mut slow = Vec::new();
        let mut leaders = [self.leaders(Kind::Kill), self.leaders(Kind::Stop)].concat();
        leaders.sort_unstable();
        if leaders.len() < ENOUGH {
            return slow;
        }
        let p99 = percentile(&leaders, 99).unwrap_or_default();
        if p99 > MOST_UNAVAILABLE {
            slow.push(format!("nobody could write for {} after a leader's death (p99)", Millis(p99)));
        }
        // The machine itself stops for a moment now and then, and that can happen right after a death; but what a
        // follower's death does, it does each time. So one death in ten may have a gap that is too long.
        let (followers, most) = (self.followers(), self.undisturbed() + MOST_OF_FOLLOWER);
        if let Some(p90) = percentile(&followers, 90).filter(|p90| *p90 > most) {
            slow.push(format!("nobody could write for {} after a follower's death (p90)", Millis(p90)));
        }
        slow
    }
}

struct Millis(Moment);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0 / 1_000)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} s", self.seed, self.took.as_secs())?;
        writeln!(f, "faults: {}", self.faults.values().sum::<usize>())?;
        for ((kind, role), times) in &self.faults {
            writeln!(f, "    {times:5} {kind:?} {role:?}")?;
        }
        writeln!(f, "operations: {}", self.operations.values().sum::<usize>())?;
        for ((verb, outcome), times) in &self.operations {
            writeln!(f, "    {times:7} {verb} {outcome}")?;
        }
        writeln!(f, "events to watchers: {}", self.told)?;
        for (kind, how) in [(Kind::Kill, "kill -9"), (Kind::Stop, "SIGTERM")] {
            let all = self.leaders(kind);
            write!(f, "leader deaths by {how}: {}", all.len())?;
            if let (Some(p50), Some(p99), Some(max)) = (percentile(&all, 50), percentile(&all, 99), all.last()) {
                write!(f, ", without writes for p50 {}, p99 {}, max {}", Millis(p50), Millis(p99), Millis(*max))?;
            }
            writeln!(f)?;
        }
        let followers = self.followers();
        write!(f, "follower deaths: {}", followers.len())?;
        if let (Some(p50), Some(max)) = (percentile(&followers, 50), followers.last()) {
            write!(f, ", longest gap between writes p50 {}, max {}", Millis(p50), Millis(*max))?;
        }
        writeln!(f, "; undisturbed {}", Millis(self.undisturbed()))?;
        for violation in &self.violations {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        let verdict = if self.violations.is_empty() { "one order explains everything" } else { "this is wrong" };
        writeln!(f, "verdict: {verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ended: &[(Moment, usize)]) -> Vec<Ack> {
        ended.iter().map(|(ended, server)| Ack { begun: ended - 5, ended: *ended, server: *server }).collect()
    }

    #[test]
    fn times_without_writes() {
        let acks = at(&[(100, 0), (120, 1), (140, 2), (150, 0), (400, 0), (420, 1), (500, 2)]);
        let death = Death { kind: Kind::Kill, role: Role::Leader, server: 0, at: 136, until: 900 };
        // The one at 140 began before, the one at 400 went through the dead one.
        assert_eq!(unavailable(&acks, &death), Some(284));
        assert_eq!(unavailable(&acks, &Death { at: 498, ..death }), None);
        assert_eq!(longest_gap(&acks, None, 100, 500), 250);
        assert_eq!(longest_gap(&acks, Some(0), 100, 500), 280);
        assert_eq!(longest_gap(&acks, None, 100, 900), 400);
        assert_eq!(longest_gap(&[], None, 100, 900), 800);
    }

    #[test]
    fn percentiles_are_values() {
        let hundred: Vec<Moment> = (1..=100).collect();
        for (percent, want) in [(50, 50), (99, 99), (100, 100), (0, 1)] {
            assert_eq!(percentile(&hundred, percent), Some(want), "{percent}");
        }
        assert_eq!(percentile(&[], 99), None);
        assert_eq!(percentile(&[7], 99), Some(7));
    }

    #[test]
    fn only_long_runs_can_be_too_slow() {
        let death = |n: u64| Death {
            kind: Kind::Kill,
            role: Role::Leader,
            server: 0,
            at: n * 9_000_000,
            until: n * 9_000_000 + 8_000_000,
        };
        let acks = |after: u64, deaths: u64| {
            let ack = |n: u64| Ack { begun: n * 9_000_000 + 1, ended: n * 9_000_000 + after, server: 1 };
            (0..deaths).map(ack).collect::<Vec<_>>()
        };
        for (deaths, after, slow) in [(19, 3_000_000, 0), (20, 3_000_000, 1), (20, 1_000_000, 0)] {
            let report =
                Report { deaths: (0..deaths).map(death).collect(), acks: acks(after, deaths), ..Report::default() };
            assert_eq!(report.slow().len(), slow, "{deaths} {after}");
        }
    }
}
