//! Who waits for what: proposals for their entries, readers for a confirmed index.

use std::{collections::VecDeque, time::Duration};

use tokio::sync::oneshot;

use super::Waiter;
use crate::{Error, mvcc::Answer};

/// After this long a caller is told that the outcome is unknown.
const PROPOSAL_WAIT: Duration = Duration::from_secs(10);
/// A read whose confirmation does not come is asked for anew after this, and given up after `READ_WAIT`.
const READ_RETRY: Duration = Duration::from_millis(300);
const READ_WAIT: Duration = Duration::from_secs(5);
/// A round of so many readers says that more are coming: the next one begins this long after it at the earliest, so that
/// they share one. What a round costs on all members is as much as reading for dozens.
const CROWD: usize = 16;
const GATHERING: Duration = Duration::from_millis(1);

struct Waiting {
    waiter: Waiter,
    deadline: Duration,
}

/// Proposals under way, which are numbered as they come. Bounded by the permits they hold, and by `PROPOSAL_WAIT`: so long an
/// unanswered one may keep the places of those behind it.
pub struct Proposals {
    /// Their numbers have no gap; those answered out of turn leave an empty place.
    waiting: VecDeque<Option<Waiting>>,
    /// The number of the first one, or of the next one to come.
    first: u64,
}

impl Proposals {
    /// `seed` differs between the lives of a member: entries that an earlier one proposed are replayed, and nobody waits
    /// for them here.
    pub fn new(seed: u64) -> Proposals {
        Proposals { waiting: VecDeque::new(), first: seed }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What the next one will go by.
    pub fn next_number(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    /// Answers the number it goes by.
    pub fn add(&mut self, now: Duration, waiter: Waiter) -> u64 {
        self.waiting.push_back(Some(Waiting { waiter, deadline: now + PROPOSAL_WAIT }));
        self.next_number() - 1
    }

    pub fn answer(&mut self, number: u64, answer: Result<Answer, Error>) {
        let place = number.checked_sub(self.first).and_then(|at| self.waiting.get_mut(at as usize));
        if let Some(waiting) = place.and_then(Option::take) {
            // Whoever asked may have gone; the write stands all the same.
            let _ = waiting.waiter.answer.send(answer);
        }
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
    }

    pub fn expire(&mut self, now: Duration) {
        while self.waiting.front().is_some_and(|first| first.as_ref().is_none_or(|first| first.deadline <= now)) {
            self.first += 1;
            if let Some(Some(Waiting { waiter: Waiter { operation, answer, .. }, .. })) = self.waiting.pop_front() {
                let _ = answer.send(Err(Error::Timeout { operation, waited: PROPOSAL_WAIT }));
            }
        }
    }

    pub fn fail_all(&mut self, error: impl Fn(&'static str) -> Error) {
        self.first += self.waiting.len() as u64;
        for Waiting { waiter: Waiter { operation, answer, .. }, .. } in self.waiting.drain(..).flatten() {
            let _ = answer.send(Err(error(operation)));
        }
    }
}

type Reader = oneshot::Sender<Result<(), Error>>;

/// Readers, in rounds: all who came while one round was under way share the next.
#[derive(Default)]
pub struct Readers {
    /// Since when the first of them waits.
    waiting: Vec<(Duration, Reader)>,
    round: Option<Round>,
    /// When the next round may begin.
    next_round: Duration,
    /// Confirmed at an index that is not applied yet.
    confirmed: Vec<(u64, Vec<(Duration, Reader)>)>,
    next: u64,
}

struct Round {
    context: u64,
    asked: Duration,
    readers: Vec<(Duration, Reader)>,
}

impl Readers {
    /// `seed` differs between the lives of a member: a confirmation that was under way to an earlier life, for an index of
    /// then, must not be taken for one that a reader of this life waits for.
    pub fn new(seed: u64) -> Readers {
        Readers { next: seed, ..Readers::default() }
    }

    pub fn add(&mut self, now: Duration, reader: Reader) {
        self.waiting.push((now, reader));
    }

    /// The context to ask a confirmation with, where one is due. Contexts are never used twice.
    pub fn begin(&mut self, now: Duration) -> Option<u64> {
        if self.round.as_ref().is_some_and(|round| now < round.asked + READ_RETRY) {
            return None;
        }
        if self.round.is_none() && now < self.next_round {
            return None;
        }
        // Readers of an unanswered round go into the next.
        let mut readers = self.round.take().map(|round| round.readers).unwrap_or_default();
        readers.append(&mut self.waiting);
        let (late, readers): (Vec<_>, Vec<_>) = readers.into_iter().partition(|(since, _)| *since + READ_WAIT < now);
        for (_, reader) in late {
            let _ = reader.send(Err(Error::Timeout { operation: "read", waited: READ_WAIT }));
        }
        if readers.is_empty() {
            return None;
        }
        self.next_round = if readers.len() < CROWD { now } else { now + GATHERING };
        self.next = self.next.wrapping_add(1);
        self.round = Some(Round { context: self.next, asked: now, readers });
        Some(self.next)
    }

    /// When a round is to begin, if only the time is missing.
    pub fn due(&self) -> Option<Duration> {
        (self.round.is_none() && !self.waiting.is_empty()).then_some(self.next_round)
    }

    /// A member that no longer hears of what is new would let its readers wait for ever.
    pub fn expire(&mut self, now: Duration) {
        for (_, readers) in &mut self.confirmed {
            for (_, reader) in readers.extract_if(.., |(since, _)| *since + READ_WAIT < now) {
                let _ = reader.send(Err(Error::Timeout { operation: "read", waited: READ_WAIT }));
            }
        }
        self.confirmed.retain(|(_, readers)| !readers.is_empty());
    }

    pub fn confirm(&mut self, context: u64, index: u64) {
        if let Some(round) = self.round.take_if(|round| round.context == context) {
            self.confirmed.push((index, round.readers));
        }
    }

    pub fn applied(&mut self, index: u64) {
        for (_, readers) in self.confirmed.extract_if(.., |(needed, _)| *needed <= index) {
            for (_, reader) in readers {
                let _ = reader.send(Ok(()));
            }
        }
    }

    pub fn fail_all(&mut self, error: &Error) {
        let confirmed = self.confirmed.drain(..).flat_map(|(_, readers)| readers);
        let round = self.round.take().map(|round| round.readers).unwrap_or_default();
        for (_, reader) in self.waiting.drain(..).chain(round).chain(confirmed) {
            let _ = reader.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(proposals: &mut Proposals, now: u64) -> (u64, oneshot::Receiver<Result<Answer, Error>>) {
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { operation: "test", answer, _permit: None };
        (proposals.add(Duration::from_secs(now), waiter), answered)
    }

    #[test]
    fn proposals_are_answered_by_number() {
        let mut proposals = Proposals::new(7);
        let (mut waiting, numbers): (Vec<_>, Vec<_>) =
            (0..4).map(|now| propose(&mut proposals, now)).map(|(number, answered)| (answered, number)).unzip();
        assert_eq!(numbers, [7, 8, 9, 10]);
        // Of an earlier life, of the middle, twice, never given.
        for number in [6, 8, 8, 11] {
            proposals.answer(number, Ok(Answer::Done));
        }
        assert!(matches!(waiting[1].try_recv(), Ok(Ok(Answer::Done))));
        // The first one's time is over, and the second one is answered already; the third one's comes later.
        proposals.expire(PROPOSAL_WAIT + Duration::from_secs(1));
        assert!(matches!(waiting[0].try_recv(), Ok(Err(Error::Timeout { .. }))));
        assert!(waiting[2].try_recv().is_err());
        proposals.answer(9, Ok(Answer::Done));
        assert!(matches!(waiting[2].try_recv(), Ok(Ok(Answer::Done))));
        proposals.fail_all(|operation| Error::LeaderChanged { operation });
        assert!(matches!(waiting[3].try_recv(), Ok(Err(Error::LeaderChanged { .. }))));
        assert!(proposals.is_empty());
        assert_eq!(propose(&mut proposals, 9).0, 11);
    }

    /// A confirmation that comes late, after a crash, is for a reader that is gone.
    #[test]
    fn a_confirmation_of_an_earlier_life_confirms_nothing() {
        let ask = |readers: &mut Readers| {
            let (reader, answer) = oneshot::channel();
            readers.add(Duration::ZERO, reader);
            (readers.begin(Duration::ZERO).expect("a round begins"), answer)
        };
        let (before, _) = ask(&mut Readers::new(7));
        let mut readers = Readers::new(7_000_000);
        let (now, mut answer) = ask(&mut readers);
        readers.confirm(before, 5);
        readers.applied(5);
        assert!(answer.try_recv().is_err(), "answered by what another life was told");
        readers.confirm(now, 9);
        readers.applied(8);
        assert!(answer.try_recv().is_err(), "answered before the index was applied");
        readers.applied(9);
        assert!(matches!(answer.try_recv(), Ok(Ok(()))));
    }
}
