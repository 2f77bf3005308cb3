//! What the agent and a shim say to each other: length-prefixed JSON on a unix socket, with file descriptors
//! beside it where a process's streams are handed over.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::{Exit, RunState};

/// Nothing said here is large: specifications travel as files. A longer frame is a broken peer.
const MAX_FRAME: usize = 1 << 20;
/// Three streams at most accompany a message.
const MAX_FDS: usize = 3;
const CHUNK: usize = 4096;

/// `container` is always the container's name within the pod, `<name>-<attempt>`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answers once the pod's namespaces stand, or says why they do not.
    Ready,
    /// Makes the container whose bundle lies in `containers/<container>/`.
    Create(Create),
    Start {
        container: String,
    },
    Signal {
        container: String,
        signal: i32,
    },
    /// Kills what runs, and removes the cgroup and libcontainer's state.
    Remove {
        container: String,
    },
    Status,
    /// From now on, exits are pushed on this connection.
    Subscribe,
    /// Starts `containers/<container>/<process>` (an OCI process). Without a terminal the three streams come with it;
    /// with one, its master side goes back. The exit is pushed on this connection.
    Exec {
        container: String,
        process: String,
        terminal: bool,
        on_hangup: OnHangup,
    },
    /// The streams come with it in the order stdin, stdout, stderr, those that are asked for.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    /// Kills every container and ends the shim; the answer is the end of the connection.
    Shutdown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    pub container: String,
    pub name: String,
    pub attempt: u32,
    pub cgroup: String,
    pub log_path: std::path::PathBuf,
    pub terminal: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Set on the container's processes; libcontainer would set it on the shim, for good.
    pub oom_score_adj: i32,
}

/// What becomes of an exec'd process when whoever asked for it goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnHangup {
    Leave,
    Kill,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Failed {
        message: String,
    },
    Status {
        containers: Vec<ShimContainer>,
    },
    /// Pushed: a container's first process has ended; its log is complete and its exit written down.
    Exited {
        container: String,
        name: String,
        attempt: u32,
    },
    /// Pushed to who started or attached to the process.
    Ended {
        code: i32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ShimContainer {
    pub container: String,
    pub pid: Option<i32>,
    pub state: RunState,
}

/// The exit record's file name in a container's directory.
pub const EXIT_FILE: &str = "exit.json";

/// Reads the exit a shim has written down, if it has.
pub fn read_exit(dir: &std::path::Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(dir.join(EXIT_FILE)).ok()?).ok()
}

/// Sends one frame; the descriptors go with its first byte. Never blocks: whoever lets this socket's buffer fill has
/// stopped listening.
pub fn send<T: Serialize>(socket: BorrowedFd, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes());
    frame.extend_from_slice(&body);
    let rights = [ControlMessage::ScmRights(fds)];
    let mut control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    let mut sent = 0;
    while sent < frame.len() {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&frame[sent..])], control, flags, None) {
            Ok(n) => sent += n,
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        control = &[];
    }
    Ok(())
}

/// Collects frames and descriptors from a non-blocking socket.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads what has arrived. `Ok(false)` is the peer's end; `WouldBlock` that there is nothing now.
    pub fn fill(&mut self, socket: BorrowedFd) -> io::Result<bool> {
        let mut chunk = [0u8; CHUNK];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut iov = [IoSliceMut::new(&mut chunk)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just put these descriptors into this process; nobody else owns them.
                self.fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let n = message.bytes;
        if self.fds.len() > MAX_FDS {
            return Err(io::Error::other("more descriptors than any message has"));
        }
        self.bytes.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    /// The next whole frame.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other("a frame is too long"));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..4 + length]).map_err(io::Error::other);
        self.bytes.drain(..4 + length);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        message.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn frames_and_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(a.as_fd(), &Request::Start { container: "c-0".into() }, &[]).unwrap();
        send(a.as_fd(), &Request::Status, &[writer.as_raw_fd()]).unwrap();
        drop(writer);
        let mut inbox = Inbox::default();
        let mut got = Vec::new();
        while got.len() < 2 {
            assert!(inbox.fill(b.as_fd()).unwrap());
            while let Some(request) = inbox.next::<Request>().unwrap() {
                got.push(request);
            }
        }
        assert!(matches!(&got[0], Request::Start { container } if container == "c-0"));
        assert!(matches!(got[1], Request::Status));
        let mut through = std::fs::File::from(inbox.fds.pop().unwrap());
        through.write_all(b"hello").unwrap();
        drop(through);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let mut inbox = Inbox::default();
        assert!(inbox.fill(b.as_fd()).unwrap());
        assert!(inbox.next::<Request>().is_err());
    }
}
