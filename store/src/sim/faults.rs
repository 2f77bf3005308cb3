//! What breaks: by chance, and on purpose to see that it is found.

use raft::eraftpb::{Message, MessageType};

use tokio::sync::oneshot;

use super::world::{Due, MS, SECOND, Slot, Time, World};
use crate::{
    MemberChange,
    disk::memory::MemoryDisk,
    image,
    raft::{Input, Queue, writer},
};

/// Ids are below this.
const MOST_MEMBERS: u64 = 12;

/// A fault planted on purpose, each at a seam, so that nothing of the store knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The disk says that it has synced, and has not.
    SkipSyncs,
    /// The log says that a batch is on the disk when it has only been given to it.
    AcknowledgeBeforeSync,
    /// A leader hears that a follower has an entry that it has not.
    AcknowledgeBeforeQuorum,
    /// Reads are not confirmed by a majority.
    ReadWithoutConfirming,
    /// The network delivers proposals twice.
    RepeatProposals,
    /// A snapshot on its way lacks a delete: a key that is gone is in it.
    DropDeleteInSnapshot,
    /// A watcher is not delivered one batch of many.
    SkipWatchedBatch,
    /// A member comes back with an empty disk as the voter that it was.
    ForgetEverything,
}

impl Sabotage {
    pub const ALL: [Sabotage; 8] = [
        Sabotage::SkipSyncs,
        Sabotage::AcknowledgeBeforeSync,
        Sabotage::AcknowledgeBeforeQuorum,
        Sabotage::ReadWithoutConfirming,
        Sabotage::RepeatProposals,
        Sabotage::DropDeleteInSnapshot,
        Sabotage::SkipWatchedBatch,
        Sabotage::ForgetEverything,
    ];
}

/// The log's answers, before its work.
pub fn acknowledge_early(jobs: &mut [writer::Job], inbox: &Queue<Input>) {
    for job in jobs {
        if let writer::Job::Write { number, messages, .. } = job {
            inbox.push(Input::Persisted { number: *number, messages: std::mem::take(messages) });
        }
    }
}

/// What is put right again after a while.
#[derive(Debug)]
pub enum Mend {
    Links(Vec<(u64, u64)>),
    Network,
    Disk(u64),
}

impl World {
    /// Breaks something, and says when the next thing breaks.
    pub fn fault(&mut self) {
        let ids: Vec<u64> = self.slots.keys().copied().collect();
        let id = ids[self.dice.roll(ids.len() as u64) as usize];
        let lasts = 50 * MS + self.dice.roll(4 * SECOND);
        match self.dice.roll(14) {
            0 | 1 => self.power_cut(id),
            2 => self.kill(id),
            3 => ids.iter().for_each(|&id| self.power_cut(id)),
            4 => {
                // A part of the members from the rest, in both directions.
                let split = self.dice.roll(1 << MOST_MEMBERS);
                let inside = |id: u64| split >> id & 1 == 1;
                let links = pairs(&ids).filter(|&(from, to)| inside(from) != inside(to)).collect();
                self.cut_links(links, lasts);
            }
            5 => {
                // One direction only.
                let links = pairs(&ids).filter(|&(from, _)| from == id).collect();
                self.cut_links(links, lasts);
            }
            6 => {
                // A ring: some hear of each other only through a third.
                let next = |id: u64| id % ids.len() as u64 + 1;
                let links = pairs(&ids).filter(|&(from, to)| next(from) != to && next(to) != from).collect();
                self.cut_links(links, lasts);
            }
            7 => {
                self.lost = self.dice.roll(60);
                self.doubled = self.dice.roll(30);
                self.slowest = 5 * MS + self.dice.roll(300 * MS);
                self.after(lasts, Due::Mend(Mend::Network));
            }
            8 => {
                let until = self.now + lasts;
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.paused = until;
                }
            }
            9 => {
                let delay = 10 * MS + self.dice.roll(600 * MS);
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.disk_delay = delay;
                }
                self.after(lasts, Due::Mend(Mend::Disk(id)));
            }
            10 => {
                let operations = self.dice.roll(30);
                if self.slots[&id].live.is_some() {
                    self.slots[&id].disk.fail_after(operations);
                }
            }
            11 | 12 => self.change_members(),
            _ => {
                let hours = self.dice.roll(5) as i64 - 2;
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.clock_ms = hours * 3_600_000 + hours;
                }
            }
        }
        let pause = 100 * MS + self.dice.roll(3 * SECOND);
        self.after(pause, Due::Fault);
    }

    /// Asks the leader to make the group larger or smaller, or to go on with what was begun.
    fn change_members(&mut self) {
        // Some of those removed before do not know it yet, and are still there. They are switched off when those who stay
        // know: before, they may still be needed to elect somebody.
        if self.those_who_stay_know() {
            for id in self.removed() {
                self.slots.remove(&id);
            }
        }
        let leader = self.slots.iter().find_map(|(&id, slot)| {
            let live = slot.live.as_ref().filter(|live| live.shared.gauges.leader() == id)?;
            let members = live.shared.state().members().clone();
            Some((id, live.inbox.clone(), members))
        });
        let Some((leader, inbox, members)) = leader else { return };
        let change = match (members.learners.first(), self.dice.roll(4)) {
            (Some(&learner), 0) => MemberChange::Remove(learner),
            (Some(&learner), _) => MemberChange::Promote(learner),
            (None, 0 | 1) if members.voters.len() < 5 && self.newest_id + 1 < MOST_MEMBERS => {
                self.newest_id += 1;
                self.slots.insert(self.newest_id, Slot::new(false));
                self.after(0, Due::Start(self.newest_id));
                MemberChange::AddLearner(self.newest_id)
            }
            (None, _) if members.voters.len() > 1 => {
                MemberChange::Remove(members.voters[self.dice.roll(members.voters.len() as u64) as usize])
            }
            (None, _) => return,
        };
        self.summary.changes += 1;
        // Whether it comes to anything shows in the state.
        let (answer, _) = oneshot::channel();
        inbox.push(Input::Change { change, answer });
        self.wake(leader);
    }

    fn cut_links(&mut self, links: Vec<(u64, u64)>, lasts: Time) {
        self.cut.extend(links.iter().copied());
        self.after(lasts, Due::Mend(Mend::Links(links)));
    }

    pub fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Links(links) => self.cut.retain(|link| !links.contains(link)),
            Mend::Network => (self.lost, self.doubled, self.slowest) = (0, 0, 5 * MS),
            Mend::Disk(id) => self.slots.get_mut(&id).into_iter().for_each(|slot| slot.disk_delay = MS),
        }
    }

    /// From now on nothing is broken any more, and everybody runs.
    pub fn mend_everything(&mut self) {
        self.cut.clear();
        self.mend(Mend::Network);
        let ids: Vec<u64> = self.slots.keys().copied().collect();
        for id in ids {
            self.mend(Mend::Disk(id));
            self.slots.get_mut(&id).into_iter().for_each(|slot| slot.paused = 0);
            if self.slots[&id].disk.is_failing() {
                self.power_cut(id);
            }
            self.after(0, Due::Start(id));
            self.wake(id);
        }
    }

    /// The machine loses power, perhaps in the middle of a write, and comes back later.
    pub fn power_cut(&mut self, id: u64) {
        let (seed, left) = (self.dice.roll(1 << 48), self.dice.roll(8));
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if let Some(mut live) = slot.live.take() {
            slot.disk.fail_after(left);
            if let Some(jobs) = live.writing.take() {
                let _ = live.writer.turn(jobs);
            }
            if let Some(jobs) = live.keeping.take() {
                let _ = live.keeper.turn(jobs);
            }
        }
        slot.disk = slot.disk.after_power_cut(seed);
        match self.plan.sabotage {
            Some(Sabotage::SkipSyncs) => slot.disk.ignore_syncs(),
            Some(Sabotage::ForgetEverything) => slot.disk = MemoryDisk::default(),
            _ => {}
        }
        self.restart(id);
    }

    /// The process is killed; what it wrote stays, synced or not.
    fn kill(&mut self, id: u64) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.live = None;
        }
        self.restart(id);
    }

    fn restart(&mut self, id: u64) {
        self.summary.crashes += 1;
        let pause = MS + self.dice.roll(3 * SECOND);
        self.after(pause, Due::Start(id));
    }

    /// What sabotage does to a message.
    pub fn tamper(&mut self, message: &mut Message) {
        match (self.plan.sabotage, message.get_msg_type()) {
            (Some(Sabotage::AcknowledgeBeforeQuorum), MessageType::MsgAppend) if !message.entries.is_empty() => {
                let mut answer =
                    Message { from: message.to, to: message.from, term: message.term, ..Message::default() };
                answer.set_msg_type(MessageType::MsgAppendResponse);
                answer.index = message.index + message.entries.len() as u64;
                self.after(100, Due::Deliver(Box::new(answer)));
            }
            (Some(Sabotage::DropDeleteInSnapshot), MessageType::MsgSnapshot) => {
                let Some(buried) = self.archive.last_deleted() else { return };
                let Ok(mut image) = image::decode(message.get_snapshot().data.clone()) else { return };
                if buried.mod_revision <= image.base.revision && !image.map.contains(&buried.key) {
                    image.map.insert(buried.clone());
                    message.mut_snapshot().data = image::encode(&image).into();
                }
            }
            _ => {}
        }
    }
}

fn pairs(ids: &[u64]) -> impl Iterator<Item = (u64, u64)> + use<'_> {
    ids.iter().flat_map(|&from| ids.iter().map(move |&to| (from, to))).filter(|(from, to)| from != to)
}
