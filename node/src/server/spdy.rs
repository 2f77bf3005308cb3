//! The framing of SPDY/3.1, as far as a server needs it whose clients open every stream: bytes in, frames out, and back.
//! <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>
//!
//! - [`Decoder`]: frames out of what a client sends
//! - [`Encoder`]: the frames that a server sends
//! - [`headers`]: blocks of headers, compressed over the whole of a connection
//!
//! Invariant: WINDOW_UPDATE is neither awaited nor sent. The clients there are (all of one library) know no windows and
//! take such a frame for an error, so TCP's own window is what slows a sender down.

mod headers;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use self::headers::Inflater;

/// The largest frame taken. Clients send blocks of some 32 KiB; the format would allow 16 MiB.
const FRAME_MAX: usize = 1 << 20;
const HEAD: usize = 8;

const CONTROL: u8 = 0x80;
const VERSION: u8 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u8 = 1;
const SYN_REPLY: u8 = 2;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const HEADERS: u8 = 8;

/// SPDY is spoken wrongly, in these words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// Whether a sender is done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fin {
    More,
    Last,
}

/// What a client says. Kinds of frames that change nothing here (SETTINGS, WINDOW_UPDATE, later HEADERS) do not show up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open { stream: u32, headers: Vec<(String, String)> },
    Data { stream: u32, data: Bytes, fin: Fin },
    Reset { stream: u32 },
    Ping { id: u32 },
    GoAway,
}

/// Why a stream is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    ProtocolError = 1,
    RefusedStream = 3,
}

#[derive(Default)]
pub(super) struct Decoder {
    received: BytesMut,
    inflater: Inflater,
}

impl Decoder {
    /// Where what comes from the client is to be put.
    pub fn received(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// The next frame, or nothing before more has been received. After an error the connection is of no use.
    pub fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        loop {
            let Some(head) = self.received.first_chunk::<HEAD>().copied() else { return Ok(None) };
            let [a, b, c, kind, flags, long @ ..] = head;
            let length = long.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if length > FRAME_MAX {
                return Err(Malformed("a frame is too long"));
            }
            if self.received.len() < HEAD + length {
                return Ok(None);
            }
            self.received.advance(HEAD);
            let body = self.received.split_to(length).freeze();
            let fin = if flags & FLAG_FIN == 0 { Fin::More } else { Fin::Last };
            if a & CONTROL == 0 {
                return Ok(Some(Frame::Data { stream: u32::from_be_bytes([a, b, c, kind]), data: body, fin }));
            }
            if (a, b, c) != (CONTROL, VERSION, 0) {
                return Err(Malformed("a frame is not of SPDY/3"));
            }
            if let Some(frame) = self.control(kind, body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u8, mut body: Bytes) -> Result<Option<Frame>, Malformed> {
        let mut number = || body.try_get_u32().map_err(|_| Malformed("a frame is too short"));
        Ok(match kind {
            SYN_STREAM => {
                let stream = number()? & !(1 << 31);
                // The stream it belongs to, then its priority and slot.
                number()?;
                let headers = body.get(2..).ok_or(Malformed("a frame is too short"))?;
                Some(Frame::Open { stream, headers: self.inflater.headers(headers)? })
            }
            HEADERS => {
                number()?;
                // What it says matters to nobody, but the blocks after it refer to it.
                self.inflater.headers(&body)?;
                None
            }
            RST_STREAM => Some(Frame::Reset { stream: number()? }),
            PING => Some(Frame::Ping { id: number()? }),
            GOAWAY => Some(Frame::GoAway),
            _ => None,
        })
    }
}

/// Each call adds one frame to `out`.
#[derive(Default)]
pub(super) struct Encoder {
    replied: bool,
}

impl Encoder {
    /// Accepts a stream.
    pub fn reply(&mut self, out: &mut BytesMut, stream: u32) {
        let block = if self.replied { headers::NONE_AGAIN } else { headers::NONE_FIRST };
        self.replied = true;
        control(out, SYN_REPLY, 4 + block.len());
        out.put_u32(stream);
        out.put_slice(block);
    }

    /// `data` is shorter than the 16 MiB that the format has room for.
    pub fn data(&self, out: &mut BytesMut, stream: u32, data: &[u8], fin: Fin) {
        out.put_u32(stream);
        out.put_u8(if fin == Fin::Last { FLAG_FIN } else { 0 });
        out.put_uint(data.len() as u64, 3);
        out.put_slice(data);
    }

    pub fn reset(&self, out: &mut BytesMut, stream: u32, why: Refusal) {
        control(out, RST_STREAM, 8);
        out.put_u32(stream);
        out.put_u32(why as u32);
    }

    pub fn ping(&self, out: &mut BytesMut, id: u32) {
        control(out, PING, 4);
        out.put_u32(id);
    }

    /// Nothing new is accepted after `last`.
    pub fn go_away(&self, out: &mut BytesMut, last: u32) {
        control(out, GOAWAY, 8);
        out.put_u32(last);
        out.put_u32(0);
    }
}

fn control(out: &mut BytesMut, kind: u8, length: usize) {
    out.put_slice(&[CONTROL, VERSION, 0, kind, 0]);
    out.put_uint(length as u64, 3);
}

/// What kubectl 1.20 and 1.29 send for `exec -i p -- cat` with "hello\n" as input, frame by frame.
#[cfg(test)]
pub(super) const KUBECTL: &[&str] = &[
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    "800300010000001700000003000000000000c22e555c92929907000000ffff",
    "800300010000001900000005000000000000c22ac5565c92925f5a02000000ffff",
    "800300010000001500000007000000000000c229975a5404000000ffff",
    "000000030000000668656c6c6f0a",
    "0000000301000000",
    "80030003000000080000000100000005",
    "80030007000000080000000000000000",
];

#[cfg(test)]
pub(super) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, Malformed> {
        std::iter::from_fn(|| decoder.next().transpose()).collect()
    }

    fn opened(stream: u32, kind: &str) -> Frame {
        Frame::Open { stream, headers: vec![("streamtype".to_owned(), kind.to_owned())] }
    }

    fn data(stream: u32, data: &'static [u8], fin: Fin) -> Frame {
        Frame::Data { stream, data: Bytes::from_static(data), fin }
    }

    #[test]
    fn kubectl_is_understood_in_pieces_of_any_size() {
        let want = [
            opened(1, "error"),
            opened(3, "stdin"),
            opened(5, "stdout"),
            opened(7, "stderr"),
            data(3, b"hello\n", Fin::More),
            data(3, b"", Fin::Last),
            Frame::Reset { stream: 1 },
            Frame::GoAway,
        ];
        let sent = bytes(&KUBECTL.concat());
        for size in [1, 7, 100, sent.len()] {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for piece in sent.chunks(size) {
                decoder.received().extend_from_slice(piece);
                frames.extend(all(&mut decoder).expect("frames"));
            }
            assert_eq!(frames, want, "in pieces of {size}");
        }
    }

    #[test]
    fn headers_nobody_reads_still_count() {
        let mut decoder = Decoder::default();
        decoder.received().extend(bytes(KUBECTL[0]));
        // The block that opens stdin, in a HEADERS frame: what follows refers to it.
        decoder.received().extend(bytes("800300080000001100000001c22e555c92929907000000ffff"));
        decoder.received().extend(bytes(KUBECTL[2]));
        assert_eq!(all(&mut decoder), Ok(vec![opened(1, "error"), opened(5, "stdout")]));
    }

    #[test]
    fn frames_without_a_meaning_here_are_passed_over() {
        let mut decoder = Decoder::default();
        decoder.received().extend(bytes("800300040000000400000000"));
        decoder.received().extend(bytes("80030009000000080000000100010000"));
        decoder.received().extend(bytes("800300060000000400000005"));
        assert_eq!(all(&mut decoder), Ok(vec![Frame::Ping { id: 5 }]));
    }

    #[test]
    fn what_is_not_spdy_is_told() {
        for (sent, want) in [
            ("8002000100000000", "a frame is not of SPDY/3"),
            ("8003010100000000", "a frame is not of SPDY/3"),
            ("0000000300ffffff", "a frame is too long"),
            ("800300030000000100", "a frame is too short"),
            ("8003000100000008000000010000000000", "a frame is too short"),
            ("8003000600000000", "a frame is too short"),
        ] {
            let mut decoder = Decoder::default();
            decoder.received().extend(bytes(sent));
            // A frame that is not whole is waited for.
            decoder.received().extend(vec![0; 1]);
            assert_eq!(decoder.next(), Err(Malformed(want)), "{sent}");
        }
    }

    #[test]
    fn what_we_send() {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        encoder.reply(&mut out, 1);
        encoder.reply(&mut out, 3);
        encoder.data(&mut out, 5, b"ok", Fin::More);
        encoder.data(&mut out, 5, b"", Fin::Last);
        encoder.reset(&mut out, 9, Refusal::RefusedStream);
        encoder.ping(&mut out, 7);
        encoder.go_away(&mut out, 5);
        let want = [
            "80030002000000180000000178bbe3c6a7c2000400fbff00000000000000ffff",
            "800300020000001200000003000400fbff00000000000000ffff",
            "00000005000000026f6b",
            "0000000501000000",
            "80030003000000080000000900000003",
            "800300060000000400000007",
            "80030007000000080000000500000000",
        ];
        assert_eq!(out, bytes(&want.concat()));
    }
}
