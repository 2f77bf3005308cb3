//! Who is told what, and when: three members worked by hand, under a clock that is a number.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ::raft::eraftpb::{Message, MessageType};
use tokio::sync::oneshot;

use super::put;
use crate::{
    command::{self, Command, Proposal},
    disk::memory::MemoryDisk,
    mvcc::Limits,
    raft::{
        Input, Parts, Proposed, Transport, Waiter,
        driver::{Now, Turn},
        recover::{self, Member},
    },
    wire::OutgoingSnapshot,
};

/// A tick is a tenth of a second: whatever happens sooner does not wait for one.
const MOMENT: Duration = Duration::from_micros(100);
const WHILE: Duration = Duration::from_millis(2);

#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Vec<Message>>>);

impl Transport for Wires {
    fn send(&mut self, message: Message) {
        self.0.lock().unwrap().push(message);
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        self.send(snapshot.into_message());
    }
}

struct Three {
    members: BTreeMap<u64, Member>,
    wires: Wires,
    now: Duration,
    /// When each wants its next turn.
    due: BTreeMap<u64, Duration>,
    sent: Vec<MessageType>,
}

impl Three {
    /// With a leader that all know.
    fn new() -> Three {
        let wires = Wires::default();
        let members: BTreeMap<u64, Member> = (1..=3)
            .map(|id| {
                let limits = Limits { revisions: 50, age_ms: u64::MAX / 8, bytes: 1 << 20 };
                let parts = Parts {
                    voters: vec![1, 2, 3],
                    transport: Box::new(wires.clone()),
                    ..Parts::on_disk(id, limits, Arc::new(MemoryDisk::default()))
                };
                let mut member = recover::assemble(parts, id).expect("a member");
                member.driver.begin().expect("it begins");
                (id, member)
            })
            .collect();
        let mut three = Three { members, wires, now: Duration::ZERO, due: BTreeMap::new(), sent: Vec::new() };
        while three.leader() == 0 || three.members.values().any(|member| member.revision() == 0) {
            three.pass(Duration::from_millis(100));
            assert!(three.now < Duration::from_secs(60), "nobody is elected");
        }
        three.pass(WHILE);
        three.sent.clear();
        three
    }

    fn leader(&self) -> u64 {
        let leaders: Vec<u64> = self.members.values().map(|member| member.started.shared.gauges.leader()).collect();
        if leaders.iter().all(|leader| *leader == leaders[0]) { leaders[0] } else { 0 }
    }

    fn followers(&self) -> Vec<u64> {
        let leader = self.leader();
        self.members.keys().copied().filter(|&id| id != leader).collect()
    }

    fn revisions(&self, ids: &[u64]) -> Vec<u64> {
        ids.iter().map(|id| self.members[id].revision()).collect()
    }

    fn hand_in(&self, id: u64, input: Input) {
        self.members[&id].started.inbox.push(input);
    }

    fn propose(&self, id: u64, key: &str) -> oneshot::Receiver<Result<crate::mvcc::Answer, crate::Error>> {
        let (answer, answered) = oneshot::channel();
        let data = command::encode(&Proposal { at: 1, command: Command::Txn(put(key, "v")) });
        let waiter = Waiter { operation: "test", answer, _permit: None };
        self.hand_in(id, Input::Propose(Proposed { data, waiter }));
        answered
    }

    fn read(&self, id: u64, readers: usize) -> Vec<oneshot::Receiver<Result<(), crate::Error>>> {
        let reader = || {
            let (reader, confirmed) = oneshot::channel();
            self.hand_in(id, Input::Read(reader));
            confirmed
        };
        (0..readers).map(|_| reader()).collect()
    }

    /// Until nobody has anything to do at this time; disks and wires take none.
    fn settle(&mut self) {
        let mut first = true;
        loop {
            for (id, member) in &mut self.members {
                let inputs = member.started.inbox.take(Duration::ZERO);
                if inputs.is_empty() && !first && self.due.get(id).is_some_and(|due| *due > self.now) {
                    continue;
                }
                let now = Now { since_start: self.now, unix_ms: 1 };
                let Turn::Wait(wait) = member.driver.turn(now, inputs).expect("a turn") else { panic!("it stopped") };
                self.due.insert(*id, self.now + wait);
                let jobs = member.writer.jobs.take(Duration::ZERO);
                assert!(member.writer.turn(jobs).is_continue());
            }
            first = false;
            let messages = std::mem::take(&mut *self.wires.0.lock().unwrap());
            for message in messages {
                self.sent.push(message.get_msg_type());
                self.hand_in(message.to, Input::Message(Box::new(message)));
            }
            let waits = self.members.values().all(|member| member.started.inbox.is_empty());
            if waits && self.due.values().all(|due| *due > self.now) {
                return;
            }
        }
    }

    /// Lets time pass as far as `span`, with turns when they are due.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        self.settle();
        while let Some(next) = self.due.values().min().copied().filter(|next| *next <= end) {
            self.now = next;
            self.settle();
        }
        self.now = end;
    }

    fn count(&self, kind: MessageType) -> usize {
        self.sent.iter().filter(|sent| **sent == kind).count()
    }
}

impl Member {
    fn revision(&self) -> u64 {
        self.started.shared.state().revision()
    }
}

#[test]
fn followers_hear_with_the_next_entries_what_is_committed_or_soon() {
    let mut three = Three::new();
    let (leader, followers) = (three.leader(), three.followers());
    let before = three.revisions(&followers);
    for n in 0..5 {
        let mut answered = three.propose(leader, &n.to_string());
        three.pass(MOMENT);
        assert!(matches!(answered.try_recv(), Ok(Ok(_))), "it is committed at once");
        assert_eq!(three.revisions(&followers), before.iter().map(|revision| revision + n).collect::<Vec<_>>());
    }
    assert_eq!((three.count(MessageType::MsgAppend), three.count(MessageType::MsgAppendResponse)), (10, 10));
    // Nothing follows: they are told for its own sake.
    three.pass(WHILE);
    assert_eq!(three.revisions(&followers), before.iter().map(|revision| revision + 5).collect::<Vec<_>>());
    assert_eq!((three.count(MessageType::MsgAppend), three.count(MessageType::MsgAppendResponse)), (12, 12));
    three.pass(WHILE);
    assert_eq!(three.count(MessageType::MsgAppend), 12, "once");
}

#[test]
fn a_follower_that_waits_hears_at_once() {
    let mut three = Three::new();
    let follower = three.followers()[0];
    let mut answered = three.propose(follower, "a");
    three.pass(MOMENT);
    assert!(matches!(answered.try_recv(), Ok(Ok(_))));
}

#[test]
fn a_crowd_of_readers_shares_rounds_and_a_few_do_not_wait() {
    let confirmed = |readers: &mut Vec<oneshot::Receiver<Result<(), crate::Error>>>| {
        readers.iter_mut().filter_map(|reader| reader.try_recv().ok()).filter(Result::is_ok).count()
    };
    let mut three = Three::new();
    let leader = three.leader();
    for _ in 0..3 {
        let mut few = three.read(leader, 3);
        three.pass(MOMENT);
        assert_eq!(confirmed(&mut few), 3);
    }
    assert_eq!(three.count(MessageType::MsgHeartbeat), 6);
    let mut crowd = three.read(leader, 100);
    three.pass(MOMENT);
    assert_eq!(confirmed(&mut crowd), 100);
    // More of them come soon: these wait for one another.
    let mut next = three.read(leader, 1);
    three.pass(MOMENT);
    next.extend(three.read(leader, 1));
    three.pass(MOMENT);
    assert_eq!(confirmed(&mut next), 0);
    three.pass(WHILE);
    assert_eq!(confirmed(&mut next), 2);
    assert_eq!(three.count(MessageType::MsgHeartbeat), 10);
}
