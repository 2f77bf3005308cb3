//! The stream under a connection, which decides what leaves in one write.
//!
//! It takes one buffer at a time: told so, h2 puts messages of up to 1 KiB together; of a stream that takes several it has
//! each message of 256 bytes and more written by itself.
//!
//! And it holds back pongs: Go's clients ping with nearly every call to measure the way, and a pong by itself costs a write
//! here and a wake-up there, just before the answer. [`Stream::release`] ends that.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Of HTTP/2's frames: the header's length, where type and flags are in it, and those of a pong.
const HEADER: usize = 9;
const TYPE: usize = 3;
const FLAGS: usize = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
/// More than that is not held back.
const MOST: usize = 1 << 10;

/// Clones are handles of one stream.
pub struct Stream<T>(Arc<Mutex<Inner<T>>>);

struct Inner<T> {
    stream: T,
    /// Taken and not yet sent.
    held: BytesMut,
    /// There is more in it than may be held back.
    due: bool,
    /// Nothing is held back any more.
    ends: bool,
}

impl<T> Clone for Stream<T> {
    fn clone(&self) -> Stream<T> {
        Stream(self.0.clone())
    }
}

impl<T> Stream<T> {
    pub fn new(stream: T) -> Stream<T> {
        Stream(Arc::new(Mutex::new(Inner { stream, held: BytesMut::new(), due: false, ends: false })))
    }

    /// Whether something is held back.
    pub fn holds(&self) -> bool {
        !self.inner().held.is_empty()
    }

    /// From now on everything leaves at once: at its end a connection waits for pongs itself.
    pub fn hold_nothing(&self) {
        let mut inner = self.inner();
        (inner.due, inner.ends) = (true, true);
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    /// Sends what is held back.
    pub fn release(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        inner.due = true;
        inner.drain(context)
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        self.due = false;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.due {
            ready!(inner.drain(context))?;
        }
        if !inner.ends && are_pongs(bytes) && inner.held.len() + bytes.len() <= MOST {
            inner.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        if inner.held.is_empty() {
            return Pin::new(&mut inner.stream).poll_write(context, bytes);
        }
        inner.held.extend_from_slice(bytes);
        inner.due = true;
        // What does not go now goes with the next flush.
        match inner.drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if inner.due {
            ready!(inner.drain(context))?;
        }
        Pin::new(&mut inner.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.drain(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

/// Whether these are whole pongs, and nothing else.
fn are_pongs(mut bytes: &[u8]) -> bool {
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length = HEADER + u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if header[TYPE] != PING || header[FLAGS] & ACK == 0 || bytes.len() < length {
            return false;
        }
        bytes = &bytes[length..];
    }
    bytes.is_empty()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        frame
    }

    #[tokio::test]
    async fn pongs_leave_with_the_answer_or_when_they_are_released() {
        let (near, mut far) = duplex(64);
        let mut stream = Stream::new(near);
        let (pong, other, headers) = (frame(PING, ACK, &[7; 8]), frame(PING, ACK, &[8; 8]), frame(1, 4, &[9; 100]));
        stream.write_all(&pong).await.expect("taken");
        stream.flush().await.expect("nothing is due");
        stream.write_all(&[&other[..], &pong].concat()).await.expect("taken");
        assert!(stream.holds());
        let wanted = [&pong[..], &other, &pong, &headers].concat();
        // More than the other end takes at once.
        let sending = async {
            stream.write_all(&headers).await.expect("taken");
            stream.flush().await.expect("sent");
        };
        let mut received = vec![0; wanted.len()];
        let ((), read) = tokio::join!(sending, far.read_exact(&mut received));
        read.expect("all of it");
        assert_eq!(received, wanted);
        assert!(!stream.holds());

        stream.write_all(&pong).await.expect("taken");
        std::future::poll_fn(|context| stream.release(context)).await.expect("sent");
        let mut received = vec![0; pong.len()];
        far.read_exact(&mut received).await.expect("the pong");
        assert_eq!(received, pong);

        stream.write_all(&pong).await.expect("taken");
        stream.hold_nothing();
        stream.flush().await.expect("sent");
        stream.write_all(&other).await.expect("sent");
        let mut received = vec![0; pong.len() + other.len()];
        far.read_exact(&mut received).await.expect("both");
        assert_eq!(received, [&pong[..], &other].concat());
    }

    #[tokio::test]
    async fn nothing_is_lost_at_the_end() {
        let (near, mut far) = duplex(64);
        let (mut stream, pong) = (Stream::new(near), frame(PING, ACK, &[1; 8]));
        stream.write_all(&pong).await.expect("taken");
        stream.shutdown().await.expect("shut down");
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.expect("the rest");
        assert_eq!(rest, pong);
    }

    #[test]
    fn what_is_held_back() {
        let pong = frame(PING, ACK, &[0; 8]);
        for (bytes, holds) in [
            (pong.clone(), true),
            (pong.repeat(2), true),
            ([&pong[..], &frame(0, 1, b"data")].concat(), false),
            (frame(PING, 0, &[0; 8]), false),
            (frame(4, ACK, &[]), false),
            (frame(8, 0, &[0; 4]), false),
            (pong[..12].to_vec(), false),
            (pong[..3].to_vec(), false),
        ] {
            assert_eq!(are_pongs(&bytes), holds, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn much_is_not_held_back() {
        let (near, mut far) = duplex(1 << 20);
        let mut stream = Stream::new(near);
        let pongs = frame(PING, ACK, &[7; 8]).repeat(2 * MOST / 17);
        stream.write_all(&pongs).await.expect("taken");
        let mut received = vec![0; pongs.len()];
        far.read_exact(&mut received).await.expect("at once");
        assert_eq!(received, pongs);
    }
}
