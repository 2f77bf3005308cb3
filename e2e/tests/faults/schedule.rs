//! Which fault comes next: decks of all kinds, each shuffled by the seed, so that each kind has its turn.

use std::time::Duration;

use super::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Leader,
    Follower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9, and a start again.
    Kill,
    /// SIGTERM, and a start again.
    Stop,
    KillAll,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// Cut off from everybody.
    Unplug,
    /// Cut off from the other servers, not from its clients.
    CutOff,
    /// Cut off from one other server.
    CutPair,
    /// Unheard by the other servers.
    Mute,
    /// Without hearing the other servers.
    Deaf,
    Loss,
    DiskFull,
    /// Every write fails. Its disk is replaced by an empty one.
    DiskFails,
    /// Killed, and started with an empty disk.
    Replace,
}

/// A link that is bad beside another fault, on another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    Loss(u64),
    Mute,
    Deaf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    pub role: Role,
    /// From when it begins until it is mended.
    pub lasts: Duration,
    /// Of packets, where they get lost.
    pub percent: u64,
    pub beside: Option<Beside>,
}

/// How often each comes in a deck. Deaths come more often: their times are reported as percentiles.
const DECK: &[(Kind, Role, usize)] = &[
    (Kind::Kill, Role::Leader, 3),
    (Kind::Kill, Role::Follower, 2),
    (Kind::Stop, Role::Leader, 2),
    (Kind::Stop, Role::Follower, 1),
    (Kind::KillAll, Role::Leader, 1),
    (Kind::Pause, Role::Leader, 1),
    (Kind::Pause, Role::Follower, 1),
    (Kind::Unplug, Role::Leader, 1),
    (Kind::Unplug, Role::Follower, 1),
    (Kind::CutOff, Role::Leader, 1),
    (Kind::CutOff, Role::Follower, 1),
    (Kind::CutPair, Role::Leader, 1),
    (Kind::CutPair, Role::Follower, 1),
    (Kind::Mute, Role::Leader, 1),
    (Kind::Mute, Role::Follower, 1),
    (Kind::Deaf, Role::Leader, 1),
    (Kind::Deaf, Role::Follower, 1),
    (Kind::Loss, Role::Leader, 1),
    (Kind::Loss, Role::Follower, 1),
    (Kind::DiskFull, Role::Leader, 1),
    (Kind::DiskFull, Role::Follower, 1),
    (Kind::DiskFails, Role::Leader, 1),
    (Kind::DiskFails, Role::Follower, 1),
    (Kind::Replace, Role::Leader, 1),
    (Kind::Replace, Role::Follower, 1),
];

/// What a server that is alone comes back from with all that it had acknowledged.
const ALONE: &[Kind] = &[Kind::Kill, Kind::Stop, Kind::Pause, Kind::Unplug, Kind::Loss, Kind::DiskFull];

/// How many faults of a hundred have a second one beside them.
const BESIDE: u64 = 25;

pub struct Schedule {
    dice: Dice,
    servers: usize,
    deck: Vec<(Kind, Role)>,
}

impl Schedule {
    pub fn new(seed: u64, servers: usize) -> Schedule {
        Schedule { dice: Dice::new(seed, u64::MAX), servers, deck: Vec::new() }
    }

    pub fn next(&mut self) -> Fault {
        if self.deck.is_empty() {
            let may = |kind: &Kind, role: &Role| self.servers > 1 || ALONE.contains(kind) && *role == Role::Leader;
            for (kind, role, times) in DECK.iter().filter(|(kind, role, _)| may(kind, role)) {
                self.deck.extend(std::iter::repeat_n((*kind, *role), *times));
            }
            self.dice.shuffle(&mut self.deck);
        }
        let (kind, role) = self.deck.pop().expect("a deck has cards");
        let (least, most) = match kind {
            Kind::Kill | Kind::Stop => (2_000, 4_000),
            Kind::KillAll => (0, 500),
            Kind::Pause => (1_000, 8_000),
            Kind::Replace => (500, 2_000),
            Kind::Unplug | Kind::CutOff | Kind::CutPair | Kind::Mute | Kind::Deaf | Kind::Loss => (2_000, 6_000),
            Kind::DiskFull | Kind::DiskFails => (4_000, 5_000),
        };
        let lasts = Duration::from_millis(least + self.dice.below(most - least));
        let percent = 5 + self.dice.below(45);
        let beside = match self.dice.below(3) {
            0 => Beside::Loss(5 + self.dice.below(25)),
            1 => Beside::Mute,
            _ => Beside::Deaf,
        };
        let beside = (self.dice.percent(BESIDE) && self.servers > 2 && kind != Kind::KillAll).then_some(beside);
        Fault { kind, role, lasts, percent, beside }
    }

    /// A server out of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        self.dice.pick(from)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_repeats_its_faults_and_each_kind_has_its_turn() {
        let size: usize = DECK.iter().map(|(_, _, times)| times).sum();
        let faults = |seed| {
            let mut schedule = Schedule::new(seed, 3);
            (0..size).map(|_| schedule.next()).collect::<Vec<Fault>>()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
        let kinds: BTreeSet<_> = faults(7).iter().map(|fault| (fault.kind, fault.role)).collect();
        assert_eq!(kinds.len(), DECK.len());
    }

    #[test]
    fn a_server_that_is_alone_keeps_its_disk() {
        let mut schedule = Schedule::new(7, 1);
        for _ in 0..100 {
            let fault = schedule.next();
            assert!(ALONE.contains(&fault.kind) && fault.beside.is_none(), "{fault:?}");
        }
    }
}
