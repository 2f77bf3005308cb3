//! Messages between members as bytes, for whoever brings them over.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::{
    image,
    mvcc::Image,
    raft::{Input, Queue, Transport},
};

/// Brings messages to other members, by their numbers. It may lose and reorder them; it must not deliver one twice, as a
/// write that a follower passed on would be carried out twice.
pub trait Wire: Send + Sync {
    /// Must not block. What cannot be taken is dropped: Raft sends what still matters anew.
    fn send(&self, to: u64, message: Bytes);
    /// Must not block either: a snapshot may be large, and has a way of its own.
    fn send_snapshot(&self, to: u64, snapshot: OutgoingSnapshot);
}

/// A state on its way to a member that is too far behind to be sent the log. The sender waits until it is
/// [`OutgoingSnapshot::delivered`], or dropped, before it sends that member anything else.
pub struct OutgoingSnapshot {
    message: Message,
    image: Image,
    report: Report,
}

struct Report {
    to: u64,
    inbox: Arc<Queue<Input>>,
    delivered: bool,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.inbox.push(Input::SnapshotSent { to: self.to, delivered: self.delivered });
    }
}

impl OutgoingSnapshot {
    pub(crate) fn new(message: Message, image: Image, inbox: Arc<Queue<Input>>) -> OutgoingSnapshot {
        let report = Report { to: message.to, inbox, delivered: false };
        OutgoingSnapshot { message, image, report }
    }

    /// Hands all its bytes to `sink`, in pieces of about a megabyte, until that wants no more. It takes a while.
    pub fn write<E>(&self, mut sink: impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        let message = self.message.write_to_bytes().unwrap_or_default();
        sink(Bytes::copy_from_slice(&(message.len() as u32).to_le_bytes()))?;
        sink(message.into())?;
        image::write_chunks(&self.image, |chunk| sink(Bytes::copy_from_slice(chunk)))
    }

    pub fn delivered(mut self) {
        self.report.delivered = true;
    }

    /// As one message, for those who keep everything in memory.
    #[cfg(test)]
    pub(crate) fn into_message(self) -> Message {
        let mut message = self.message.clone();
        message.mut_snapshot().data = image::encode(&self.image).into();
        self.delivered();
        message
    }
}

impl std::fmt::Debug for OutgoingSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutgoingSnapshot").field("to", &self.message.to).finish_non_exhaustive()
    }
}

/// What came over a wire was not what is sent over one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no message between members: {0}")]
pub struct WireError(&'static str);

const FOREIGN: WireError = WireError("it is in the name of another member");

/// Reads one message of a member. What raft-rs would take for a bug of its own, and end the process for, is none.
pub(crate) fn read_message(from: u64, bytes: &Bytes) -> Result<Message, WireError> {
    let mut message = Message::new();
    message.merge_from_bytes(bytes).map_err(|_| WireError("it cannot be decoded"))?;
    if message.from != from {
        return Err(FOREIGN);
    }
    match message.get_msg_type() {
        MessageType::MsgSnapshot => Err(WireError("a snapshot has a way of its own")),
        MessageType::MsgPropose | MessageType::MsgReadIndex if message.entries.is_empty() => {
            Err(WireError("there is nothing in it"))
        }
        MessageType::MsgHup | MessageType::MsgBeat | MessageType::MsgCheckQuorum | MessageType::MsgUnreachable => {
            Err(WireError("a member says this to itself only"))
        }
        MessageType::MsgSnapStatus => Err(WireError("a member says this to itself only")),
        _ => Ok(message),
    }
}

/// Reads what [`OutgoingSnapshot::write`] wrote, and checks that it is all there.
pub(crate) fn read_snapshot(from: u64, mut bytes: Bytes) -> Result<Message, WireError> {
    const SHORT: WireError = WireError("it is cut short");
    let length = bytes.try_get_u32_le().map_err(|_| SHORT)? as usize;
    if length > bytes.len() {
        return Err(SHORT);
    }
    let head = bytes.split_to(length);
    let mut message = Message::new();
    message.merge_from_bytes(&head).map_err(|_| WireError("it cannot be decoded"))?;
    if message.from != from {
        return Err(FOREIGN);
    }
    if message.get_msg_type() != MessageType::MsgSnapshot {
        return Err(WireError("it is no snapshot"));
    }
    if !image::is_whole(&bytes) {
        return Err(WireError("its checksum differs"));
    }
    message.mut_snapshot().data = bytes;
    Ok(message)
}

/// Puts the driver's messages on a wire.
pub(crate) struct OnWire(pub Arc<dyn Wire>);

impl Transport for OnWire {
    fn send(&mut self, message: Message) {
        match message.write_to_bytes() {
            Ok(bytes) => self.0.send(message.to, bytes.into()),
            Err(error) => tracing::error!(%error, "a message cannot be encoded"),
        }
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        self.0.send_snapshot(snapshot.message.to, snapshot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Position;

    #[test]
    fn a_snapshot_arrives_whole_or_not_at_all() {
        let inbox = Arc::new(Queue::default());
        let mut message = Message { to: 3, from: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        let mut image = Image::default();
        image.base.position = Position { index: 9, term: 2 };
        let snapshot = OutgoingSnapshot::new(message, image, inbox.clone());
        let mut bytes = Vec::new();
        let Ok(()) = snapshot.write(|chunk| {
            bytes.extend_from_slice(&chunk);
            Ok::<(), std::convert::Infallible>(())
        });
        let bytes = Bytes::from(bytes);
        let read = read_snapshot(1, bytes.clone()).expect("whole");
        assert_eq!((read.to, read.from), (3, 1));
        assert_eq!(image::decode(read.get_snapshot().data.clone()).expect("an image").base.position.index, 9);
        for end in [0, 3, 10, bytes.len() - 1] {
            assert!(read_snapshot(1, bytes.slice(..end)).is_err(), "cut off at {end}");
        }
        assert!(read_snapshot(2, bytes.clone()).is_err(), "another member's");
        assert!(read_message(1, &bytes.slice(4..)).is_err());
        let sent = |inbox: &Queue<Input>| match &inbox.take(std::time::Duration::ZERO)[..] {
            [Input::SnapshotSent { to, delivered }] => (*to, *delivered),
            other => panic!("{other:?}"),
        };
        drop(snapshot);
        assert_eq!(sent(&inbox), (3, false));
    }
}
