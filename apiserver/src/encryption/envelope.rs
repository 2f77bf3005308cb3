//! A value under a key: how it is written, and the way back. Pure: keys and nonces come from outside.
//!
//! What is written is `m8s:aesgcm:1:`, the number of the data key in four bytes, a nonce, the ciphertext, and its tag. The
//! key under which the store has the value is authenticated with it, so that nobody can put it in another one's place.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};

pub const KEY_LEN: usize = 32;
pub const NONCE_LEN: usize = ring::aead::NONCE_LEN;

/// How values begin that are written in this way.
const HEAD: &[u8] = b"m8s:aesgcm:1:";
/// How all encrypted values begin, those of later versions too. A plain one is JSON and begins with a brace.
const FAMILY: &[u8] = b"m8s:";
const ID_LEN: usize = size_of::<KeyId>();

/// Numbers the data keys of a cluster, from 1 on; none is given twice.
pub type KeyId = u32;

/// A key of AES-256-GCM.
pub struct Key(LessSafeKey);

impl Key {
    /// # Panics
    /// Never: every key of this length is one.
    pub fn new(bytes: &[u8; KEY_LEN]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("the length is the algorithm's")))
    }

    /// Appends the nonce, the ciphertext and its tag. A nonce must never be used twice.
    ///
    /// # Panics
    /// For 64 GiB and more, which no value has.
    pub fn encrypt(&self, out: &mut Vec<u8>, nonce: [u8; NONCE_LEN], place: &[u8], plain: &[u8]) {
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(place), &mut out[start..]);
        out.extend_from_slice(tag.expect("the value is not too long").as_ref());
    }

    /// What [`Key::encrypt`] was given, if it was with this key and place, and nobody has changed it since.
    pub fn decrypt(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut out = ciphertext.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(place), &mut out).ok()?.len();
        out.truncate(length);
        Some(out)
    }
}

/// How a stored value is written.
#[derive(Debug, PartialEq, Eq)]
pub enum Form<'a> {
    Plain,
    Sealed {
        id: KeyId,
        /// For [`Key::decrypt`].
        sealed: &'a [u8],
    },
    /// Encrypted, but not as this version does it, or cut short.
    Foreign,
}

/// Looks at no more than the first byte of a plain object.
pub fn form(value: &[u8]) -> Form<'_> {
    if value.first() != FAMILY.first() || !value.starts_with(FAMILY) {
        return Form::Plain;
    }
    match value.strip_prefix(HEAD).and_then(|rest| rest.split_first_chunk::<ID_LEN>()) {
        Some((id, sealed)) => Form::Sealed { id: KeyId::from_be_bytes(*id), sealed },
        None => Form::Foreign,
    }
}

/// A value for the store, under `place`.
pub fn seal(id: KeyId, key: &Key, nonce: [u8; NONCE_LEN], place: &[u8], plain: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEAD.len() + ID_LEN + NONCE_LEN + plain.len() + MAX_TAG_LEN);
    out.extend_from_slice(HEAD);
    out.extend_from_slice(&id.to_be_bytes());
    key.encrypt(&mut out, nonce, place, plain);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &[u8] = b"/registry/secrets/n/a";
    const PLAIN: &[u8] = br#"{"metadata":{"name":"a"},"data":{"k":"dg=="}}"#;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; KEY_LEN])
    }

    fn open(key: &Key, place: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        match form(value) {
            Form::Sealed { id: 7, sealed } => key.decrypt(place, sealed),
            Form::Sealed { .. } | Form::Plain | Form::Foreign => None,
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        for plain in [PLAIN, b"", b"{}", &[0; 100_000]] {
            let sealed = seal(7, &key(1), [3; NONCE_LEN], PLACE, plain);
            assert_eq!(open(&key(1), PLACE, &sealed).as_deref(), Some(plain));
            assert!(plain.len() < 16 || !sealed.windows(16).any(|w| w == &plain[..16]), "it is encrypted");
            assert_ne!(sealed, seal(7, &key(1), [4; NONCE_LEN], PLACE, plain), "another nonce");
        }
    }

    #[test]
    fn only_the_same_key_opens_in_the_same_place_what_nobody_changed() {
        let sealed = seal(7, &key(1), [3; NONCE_LEN], PLACE, PLAIN);
        assert_eq!(open(&key(2), PLACE, &sealed), None, "another key");
        assert_eq!(open(&key(1), b"/registry/secrets/n/b", &sealed), None, "another place");
        for length in 0..sealed.len() {
            assert_eq!(open(&key(1), PLACE, &sealed[..length]), None, "cut to {length} bytes");
        }
        for at in 0..sealed.len() {
            let mut tampered = sealed.to_vec();
            tampered[at] ^= 1;
            assert_eq!(open(&key(1), PLACE, &tampered), None, "changed at byte {at}");
        }
    }

    #[test]
    fn forms() {
        let sealed = [HEAD, &[0, 0, 1, 2], b"rest"].concat();
        for (value, want) in [
            (PLAIN, Form::Plain),
            (b"", Form::Plain),
            (b"m", Form::Plain),
            (b"mine", Form::Plain),
            (b"k8s\0protobuf", Form::Plain),
            (&sealed[..], Form::Sealed { id: 258, sealed: b"rest" }),
            (&sealed[..HEAD.len() + 3], Form::Foreign),
            (b"m8s:aesgcm:2:what is to come", Form::Foreign),
        ] {
            assert_eq!(form(value), want, "{value:?}");
        }
    }
}
