//! Who belongs to the group, who leads it, and who is to.

use std::time::Duration;

use raft::{
    StateRole,
    eraftpb::{ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType},
};
use tokio::sync::oneshot;

use super::{ABSENT, CAUGHT_UP, CONTEXT_BYTES, Driver, SLOW_DISK, SLOW_DISK_REST, apply::parse, put_context};
use crate::{
    Error, Group, MemberChange,
    mvcc::{Answer, Members},
    raft::{Waiter, recover::stopped},
};

impl Driver {
    /// Whether this member is the only one, learners included.
    pub fn is_single(&self) -> bool {
        let mut members = self.node.raft.prs().iter();
        members.next().is_some_and(|(&id, _)| id == self.node.raft.id) && members.next().is_none()
    }

    /// Whoever stops and leads has the member that knows most lead at once, instead of being missed first.
    pub(super) fn hand_over(&mut self) {
        if self.role != StateRole::Leader {
            return;
        }
        let raft = &self.node.raft;
        let voters = self.shared.state().members().voters.clone();
        let others = voters.into_iter().filter(|&id| id != raft.id);
        let known =
            others.filter_map(|id| Some((raft.prs().get(id)?, id))).filter(|(progress, _)| progress.recent_active);
        if let Some((_, next)) = known.max_by_key(|(progress, _)| progress.matched) {
            self.node.transfer_leader(next);
        }
    }

    /// Only the leader changes who belongs to the group, and one thing at a time.
    pub(super) fn change(&mut self, change: MemberChange, answer: oneshot::Sender<Result<Answer, Error>>) {
        let waiter = Waiter { operation: "change of members", answer, _permit: None };
        let number = self.proposals.add(self.now(), waiter);
        if let Err(error) = self.propose_change(number, change) {
            self.proposals.answer(number, Err(error));
        }
    }

    fn propose_change(&mut self, number: u64, change: MemberChange) -> Result<(), Error> {
        // raft-rs would put an empty entry in its place, and nobody would ever hear of it.
        if self.role != StateRole::Leader || self.node.raft.has_pending_conf() {
            return Err(Error::Unavailable);
        }
        let members = self.shared.state().members().clone();
        let refuse = |reason: String| Err(Error::InvalidChange { reason });
        let (id, kind) = match change {
            MemberChange::AddLearner(id) if members.voters.contains(&id) || members.learners.contains(&id) => {
                return refuse(format!("member {id} belongs to the group already"));
            }
            MemberChange::AddLearner(id) => (id, ConfChangeType::AddLearnerNode),
            MemberChange::Promote(id) if !members.learners.contains(&id) => {
                return refuse(format!("member {id} is no learner"));
            }
            MemberChange::Promote(id) => {
                let log = &self.node.raft.raft_log;
                let matched = self.node.raft.prs().get(id).map_or(0, |progress| progress.matched);
                // One that has nothing yet may not even be there.
                if matched == 0 || matched + CAUGHT_UP < log.committed {
                    return refuse(format!("member {id} has {matched} of {} log entries so far", log.committed));
                }
                (id, ConfChangeType::AddNode)
            }
            MemberChange::Remove(id) if members.voters[..] == [id] => {
                return refuse(format!("member {id} is the last one with a vote"));
            }
            MemberChange::Remove(id) if !members.voters.contains(&id) && !members.learners.contains(&id) => {
                return refuse(format!("member {id} does not belong to the group"));
            }
            MemberChange::Remove(id) if id == self.node.raft.id => {
                // A leader that is no member could go on leading; whoever leads next removes it.
                self.hand_over();
                return Err(Error::Unavailable);
            }
            MemberChange::Remove(id) if self.would_strand(&members, id) => {
                return refuse(format!(
                    "without member {id} those that are left could decide nothing: too many of them are absent"
                ));
            }
            MemberChange::Remove(id) => (id, ConfChangeType::RemoveNode),
        };
        let single = ConfChangeSingle { change_type: kind, node_id: id, ..ConfChangeSingle::default() };
        let change = ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() };
        let mut context = Vec::with_capacity(CONTEXT_BYTES);
        put_context(&mut context, self.node.raft.id, number);
        self.node.propose_conf_change(context, change).map_err(|_| Error::Unavailable)
    }

    /// Whether of those who would still have a vote, once `id` has none, too few are there to decide anything.
    fn would_strand(&self, members: &Members, id: u64) -> bool {
        let left: Vec<u64> = members.voters.iter().copied().filter(|&voter| voter != id).collect();
        let is_there = |voter: &&u64| **voter == self.node.raft.id || self.hears(**voter);
        members.voters.contains(&id) && left.iter().filter(is_there).count() * 2 <= left.len()
    }

    /// Whether a member has been heard of lately.
    fn hears(&self, id: u64) -> bool {
        self.heard.get(&id).is_some_and(|heard| *heard + ABSENT > self.now())
    }

    /// A leader notes whom it hears of, and has another one lead where its own disk holds everybody up.
    pub(super) fn look_around(&mut self, now: Duration) {
        if self.role != StateRole::Leader {
            self.heard.clear();
            return;
        }
        let raft = &self.node.raft;
        for (&id, _) in raft.prs().iter().filter(|(id, progress)| **id != raft.id && progress.recent_active) {
            self.heard.insert(id, now);
        }
        let slow = self.writing.front().is_some_and(|(_, since)| *since + SLOW_DISK < now);
        let rested = self.asked_to_lead.is_none_or(|asked| asked + SLOW_DISK_REST < now);
        if slow && rested && raft.lead_transferee.is_none() && self.stop.is_none() {
            tracing::warn!("this member's disk is slow: another one is asked to lead");
            self.asked_to_lead = Some(now);
            self.hand_over();
        }
    }

    /// Tells who is interested what the group looks like.
    pub(super) fn tell_group(&self) {
        let state = self.shared.state();
        let Members { voters, learners, .. } = state.members();
        let active = || voters.iter().chain(learners).copied().filter(|&id| self.hears(id));
        self.shared.group.send_if_modified(|told| {
            // Every turn comes here, and hardly one has news: nothing is copied for the others.
            let same = told.leader_id == self.leader
                && told.voters == *voters
                && told.learners == *learners
                && active().eq(told.active.iter().copied());
            if !same {
                *told = Group {
                    member_id: self.node.raft.id,
                    leader_id: self.leader,
                    voters: voters.clone(),
                    learners: learners.clone(),
                    active: active().collect(),
                };
            }
            !same
        });
    }

    /// Whether `entry` removes this member, which leads, and those who stay do not know yet that it is committed. Once it
    /// is applied nobody here tells them, and without this member's vote they could elect nobody who does.
    pub(super) fn leaves_unheard(&self, entry: &Entry) -> bool {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || entry.entry_type != EntryType::EntryConfChangeV2 {
            return false;
        }
        let removes_me =
            |change: &ConfChangeSingle| change.node_id == raft.id && change.change_type == ConfChangeType::RemoveNode;
        if !parse::<ConfChangeV2>(&entry.data).is_ok_and(|change| change.changes.iter().any(removes_me)) {
            return false;
        }
        let voters = raft.prs().conf().voters().ids();
        let others: Vec<u64> = voters.iter().filter(|&id| id != raft.id).collect();
        let knows = |id: &&u64| raft.prs().get(**id).is_some_and(|other| other.committed_index >= entry.index);
        others.iter().filter(knows).count() * 2 <= others.len()
    }

    pub(super) fn change_members(&mut self, change: &ConfChangeV2) -> Result<Members, Error> {
        let members = self.node.apply_conf_change(change).map(Members::from).map_err(|error| stopped(&error))?;
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            // A leader before it had asked for this, and it leads no longer what it does not belong to: raft-rs would
            // let it go on, and panic where it looks for its own progress.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        Ok(members)
    }
}

/// The old form of a change of members, in the new one.
pub(super) fn widen(change: ConfChange) -> ConfChangeV2 {
    let single =
        ConfChangeSingle { change_type: change.change_type, node_id: change.node_id, ..ConfChangeSingle::default() };
    ConfChangeV2 { changes: vec![single].into(), context: change.context, ..ConfChangeV2::default() }
}
