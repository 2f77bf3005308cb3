//! Blocks of headers: pairs of strings in one zlib stream over a whole connection, which starts with a dictionary that
//! both sides know.

use bytes::Buf;
use flate2::{Decompress, FlushDecompress};

use super::Malformed;

/// A client's headers are some tens of bytes.
const BLOCK_MAX: usize = 16 << 10;

/// What stands in the dictionary with its length in front, and what stands there as it is.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200\u{a0}OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// How a zlib stream names the dictionary: its Adler-32.
const DICTIONARY: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];

/// No headers at all, in the first and in any later block of a connection. Nothing is compressed in them: a count of zero
/// as it is, and an empty block, which makes the other side hand out what it has.
pub(super) const NONE_FIRST: &[u8] =
    &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
pub(super) const NONE_AGAIN: &[u8] = &[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn dictionary() -> Vec<u8> {
    let mut all = Vec::new();
    for word in WORDS.split(' ') {
        let word = word.replace('\u{a0}', " ");
        all.extend((word.len() as u32).to_be_bytes());
        all.extend(word.bytes());
    }
    all.extend(REST.bytes());
    all
}

/// The compression's state, once there was a first block.
#[derive(Default)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    pub fn headers(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
        let plain = match &mut self.0 {
            Some(stream) => inflate(stream, block)?,
            None => {
                let [method, flags, a, b, c, d, rest @ ..] = block else { return Err(NO_START) };
                if method & 0x0f != 8 || flags & 0x20 == 0 || [*a, *b, *c, *d] != DICTIONARY {
                    return Err(NO_START);
                }
                // Without zlib's frame there is no way to name a dictionary, but one that went through the stream
                // before, uncompressed, is just as well referred to.
                let mut stream = Decompress::new(false);
                let dictionary = dictionary();
                let length = (dictionary.len() as u16).to_le_bytes();
                let mut stored = vec![0, length[0], length[1], !length[0], !length[1]];
                stored.extend(dictionary);
                inflate(&mut stream, &stored)?;
                inflate(self.0.insert(stream), rest)?
            }
        };
        pairs(&plain)
    }
}

const NO_START: Malformed = Malformed("compressed headers do not begin with SPDY/3's dictionary");

fn inflate(stream: &mut Decompress, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut plain = Vec::new();
    let mut piece = [0; 2048];
    loop {
        let (before_in, before_out) = (stream.total_in(), stream.total_out());
        stream
            .decompress(block, &mut piece, FlushDecompress::Sync)
            .map_err(|_| Malformed("headers cannot be decompressed"))?;
        // Both are at most as long as the slices just given.
        let (taken, made) = ((stream.total_in() - before_in) as usize, (stream.total_out() - before_out) as usize);
        block = &block[taken..];
        plain.extend_from_slice(&piece[..made]);
        if plain.len() > BLOCK_MAX {
            return Err(Malformed("headers are too long"));
        }
        if block.is_empty() && made < piece.len() {
            return Ok(plain);
        }
        if taken == 0 && made == 0 {
            return Err(Malformed("the stream of headers has ended"));
        }
    }
}

fn pairs(mut plain: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let count = plain.try_get_u32().map_err(|_| CUT_OFF)?;
    // Each takes some of the block, so there are never more than that is long.
    let mut pairs = Vec::new();
    for _ in 0..count {
        pairs.push((string(&mut plain)?, string(&mut plain)?));
    }
    Ok(pairs)
}

const CUT_OFF: Malformed = Malformed("a block of headers is cut off");

fn string(plain: &mut &[u8]) -> Result<String, Malformed> {
    let length = plain.try_get_u32().map_err(|_| CUT_OFF)? as usize;
    let (text, rest) = plain.split_at_checked(length).ok_or(CUT_OFF)?;
    *plain = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Malformed("a header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_that_is_named() {
        let (a, b) = dictionary().iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (a + b) % 65521)
        });
        assert_eq!((b << 16 | a).to_be_bytes(), DICTIONARY);
    }

    #[test]
    fn our_own_blocks_are_empty() {
        let mut inflater = Inflater::default();
        assert_eq!(inflater.headers(NONE_FIRST), Ok(vec![]));
        assert_eq!(inflater.headers(NONE_AGAIN), Ok(vec![]));
        assert_eq!(inflater.headers(NONE_AGAIN), Ok(vec![]));
    }

    #[test]
    fn broken_blocks_are_told() {
        let stored = |plain: &[u8]| {
            let length = (plain.len() as u16).to_le_bytes();
            let mut block = NONE_FIRST[..6].to_vec();
            block.extend([0, length[0], length[1], !length[0], !length[1]]);
            block.extend(plain);
            block.extend([0, 0, 0, 0xff, 0xff]);
            block
        };
        for (block, want) in [
            (vec![], NO_START),
            (vec![0x78, 0x9c, 1, 2, 3, 4, 5], NO_START),
            (vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0xff, 0xff], Malformed("headers cannot be decompressed")),
            (stored(&[0, 0, 0]), CUT_OFF),
            (stored(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']), CUT_OFF),
            (stored(&[0xff, 0xff, 0xff, 0xff]), CUT_OFF),
            (stored(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]), Malformed("a header is not UTF-8")),
            (stored(&[0; BLOCK_MAX + 1]), Malformed("headers are too long")),
        ] {
            assert_eq!(Inflater::default().headers(&block), Err(want), "{block:?}");
        }
    }
}
