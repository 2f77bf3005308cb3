//! A connection that gathers small writes.
//!
//! A thousand watchers are told of a change one after the other, each by a frame of some hundred bytes, and unless
//! something holds them back each frame is a TLS record, a call of the kernel and a packet of its own:
//! - HTTP/2 asks its connection whether it can write several buffers at once; of one that can, as TLS says of itself,
//!   each frame of more than 256 bytes is written by itself. Told no, it puts frames of up to 1 KiB together first.
//! - The task of the connection is run as soon as the first frame is there. So a flush of little first lets the tasks
//!   run that are waiting to run, which may have more to write; that takes no time where there are none.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// The largest frame with its head, and the headers of a response before it.
const BUFFER: usize = 20 << 10;

/// With this much gathered a flush is worth its cost at once.
const ENOUGH: usize = 4 << 10;

pub struct Gather<S> {
    writer: BufWriter<S>,
    /// The others have been let run since the last flush.
    waited: bool,
}

impl<S: AsyncWrite> Gather<S> {
    pub fn new(stream: S) -> Gather<S> {
        Gather { writer: BufWriter::with_capacity(BUFFER, stream), waited: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gathered = self.writer.buffer().len();
        if !self.waited && gathered > 0 && gathered < ENOUGH {
            self.waited = true;
            // A task that wakes itself goes behind all those that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let flushed = Pin::new(&mut self.writer).poll_flush(cx);
        self.waited = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_whole_and_in_order() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let mut gather = Gather::new(near);
        let pieces: Vec<Vec<u8>> = [9, 300, BUFFER, 1, BUFFER + 7].iter().map(|&n| vec![n as u8; n]).collect();
        for piece in &pieces {
            gather.write_all(piece).await.unwrap();
        }
        gather.flush().await.unwrap();
        let mut arrived = vec![0; pieces.iter().map(Vec::len).sum()];
        far.read_exact(&mut arrived).await.unwrap();
        assert!(arrived == pieces.concat());
        assert!(!gather.is_write_vectored());
    }

    #[tokio::test]
    async fn a_flush_waits_for_those_who_are_ready() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let gather = std::sync::Arc::new(tokio::sync::Mutex::new(Gather::new(near)));
        let second = gather.clone();
        gather.lock().await.write_all(b"one ").await.unwrap();
        let flushed = tokio::spawn(async move {
            std::future::poll_fn(|cx| match gather.try_lock() {
                Ok(mut gather) => Pin::new(&mut *gather).poll_flush(cx),
                Err(_) => unreachable!("nobody holds it across a turn"),
            })
            .await
        });
        let written = tokio::spawn(async move { second.lock().await.write_all(b"two").await });
        written.await.unwrap().unwrap();
        flushed.await.unwrap().unwrap();
        let mut arrived = [0; 7];
        assert_eq!(far.read(&mut arrived).await.unwrap(), 7, "one write brought both");
        assert_eq!(&arrived, b"one two");
    }
}
