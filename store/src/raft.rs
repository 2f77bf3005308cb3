//! Consensus: the loop around raft-rs, worked by whoever has something for it or by a thread of its own, with the log's thread
//! and the checkpoint's beside it.
//!
//! Modules, in reading order: `driver` decides, `runner` works it, `pending` who waits for what, `storage` what
//! raft-rs reads, `writer` the log's thread, `keeper` the checkpoint's thread, `recover` the start, `queue` between
//! threads.

pub mod driver;
pub mod keeper;
mod logger;
mod pending;
mod queue;
pub mod recover;
mod runner;
mod storage;
pub mod writer;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Message};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use self::{
    queue::Queue,
    recover::{Parts, Sizes, Started, UNCOMMITTED_BYTES, read_all, start},
    runner::Runner,
};
use crate::{
    Error, MemberChange,
    mvcc::{Answer, Members},
    wire::OutgoingSnapshot,
};

/// Brings messages to other members, as [`crate::Wire`] does.
pub trait Transport: Send {
    fn send(&mut self, message: Message);
    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot);
}

/// For a member that is alone.
#[derive(Debug)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, _message: Message) {}

    fn send_snapshot(&mut self, _snapshot: OutgoingSnapshot) {}
}

/// Whom to tell that all of it has ended, or what has not.
pub type Stopped = oneshot::Sender<Result<(), Error>>;

/// Everything that can happen to the driver.
#[derive(Debug)]
pub enum Input {
    Propose(Proposed),
    Change {
        change: MemberChange,
        answer: oneshot::Sender<Result<Answer, Error>>,
    },
    /// Another member is to lead, if this one does: the one named, or the one that knows most.
    StepDown(Option<u64>),
    /// Someone waits for a moment from which the applied state is linearizable.
    Read(oneshot::Sender<Result<(), Error>>),
    Message(Box<Message>),
    /// A snapshot is with the member it was for, or has not got there.
    SnapshotSent {
        to: u64,
        delivered: bool,
    },
    /// The log has everything up to this Ready on disk; its messages may go out.
    Persisted {
        number: u64,
        messages: Vec<Message>,
    },
    /// A snapshot was written and the log cut behind it.
    Purged {
        index: u64,
        snapshot_bytes: u64,
    },
    Failed(Error),
    Stop(Option<Stopped>),
}

impl Input {
    /// Answers whoever waits for it that it comes too late.
    pub fn refuse(self, error: &Error) {
        match self {
            Input::Propose(proposed) => drop(proposed.waiter.answer.send(Err(error.clone()))),
            Input::Change { answer, .. } => drop(answer.send(Err(error.clone()))),
            Input::Read(reader) => drop(reader.send(Err(error.clone()))),
            Input::Stop(Some(done)) => drop(done.send(Ok(()))),
            Input::Message(_)
            | Input::SnapshotSent { .. }
            | Input::StepDown(_)
            | Input::Persisted { .. }
            | Input::Purged { .. }
            | Input::Failed(_)
            | Input::Stop(None) => {}
        }
    }
}

#[derive(Debug)]
pub struct Proposed {
    pub data: Bytes,
    pub waiter: Waiter,
}

/// Who waits for what becomes of a proposal.
#[derive(Debug)]
pub struct Waiter {
    pub operation: &'static str,
    pub answer: oneshot::Sender<Result<Answer, Error>>,
    /// Held until the proposal is decided: it bounds how much can be under way.
    pub _permit: Option<OwnedSemaphorePermit>,
}

impl From<&Members> for ConfState {
    fn from(members: &Members) -> ConfState {
        ConfState {
            voters: members.voters.clone(),
            learners: members.learners.clone(),
            voters_outgoing: members.voters_outgoing.clone(),
            learners_next: members.learners_next.clone(),
            auto_leave: members.auto_leave,
            ..ConfState::default()
        }
    }
}

impl From<ConfState> for Members {
    fn from(state: ConfState) -> Members {
        let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, .. } = state;
        Members { voters, learners, voters_outgoing, learners_next, auto_leave }
    }
}
