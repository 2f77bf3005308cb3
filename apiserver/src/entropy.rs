//! Random values from the operating system: ids, name suffixes, secrets. Nothing else in the crate draws randomness.

use ring::rand::{SecureRandom, SystemRandom};

/// # Panics
/// When the operating system has no random source, as nothing here can be safe then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut buffer = [0; N];
    source().fill(&mut buffer).expect("the operating system's random source works");
    buffer
}

/// For signatures, which draw their own.
#[expect(clippy::disallowed_methods, reason = "this is where randomness comes in")]
pub fn source() -> SystemRandom {
    SystemRandom::new()
}

/// A version 4 UUID.
pub fn uid() -> String {
    let mut b = bytes::<16>();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let h = hex(&b);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

pub fn number() -> u64 {
    u64::from_le_bytes(bytes())
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_have_the_version_4_form() {
        let id = uid();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
        assert_ne!(id, uid());
    }
}
