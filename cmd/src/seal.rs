//! Files under a passphrase: AES-256-GCM with a key derived by PBKDF2.
//!
//! `[magic][iterations u32][salt 16][nonce 12][ciphertext and tag]`; all before the ciphertext is authenticated with it.

use std::{fs, num::NonZeroU32, path::Path};

use anyhow::{Context, Result, ensure};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    pbkdf2,
    rand::{SecureRandom, SystemRandom},
};

const MAGIC: &[u8] = b"m8sSeal\x01";
const SALT: usize = 16;
const HEAD: usize = MAGIC.len() + 4 + SALT + NONCE_LEN;
const KEY: usize = 32;
/// What OWASP asks for of PBKDF2 with SHA-256: some tenths of a second, once for each file.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).unwrap();
/// A file that says more would keep its reader busy for minutes.
const MOST_ITERATIONS: u32 = 20_000_000;
/// Shorter ones are found by trying all of them.
const SHORTEST: usize = 12;

/// What a passphrase is kept as.
#[derive(Clone)]
pub struct Passphrase(Vec<u8>);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

impl Passphrase {
    /// The first line of a file.
    pub fn read(file: &Path) -> Result<Passphrase> {
        let text = fs::read(file).with_context(|| format!("read the passphrase in {}", file.display()))?;
        let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii().to_vec();
        ensure!(
            line.len() >= SHORTEST,
            "the passphrase in {} is shorter than {SHORTEST} characters: take a longer one",
            file.display()
        );
        Ok(Passphrase(line))
    }

    fn key(&self, iterations: NonZeroU32, salt: &[u8]) -> LessSafeKey {
        let mut key = [0; KEY];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, &self.0, &mut key);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("the length is the algorithm's"))
    }
}

pub fn is_sealed(data: &[u8]) -> bool {
    data.starts_with(MAGIC)
}

pub fn seal(passphrase: &Passphrase, plain: &[u8]) -> Result<Vec<u8>> {
    let mut random = [0; SALT + NONCE_LEN];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| anyhow::anyhow!("the operating system gives no random numbers"))?;
    let (salt, nonce) = random.split_at(SALT);
    let mut out = [MAGIC, &ITERATIONS.get().to_le_bytes(), &random].concat();
    out.extend_from_slice(plain);
    let (head, body) = out.split_at_mut(HEAD);
    let key = passphrase.key(ITERATIONS, salt);
    let nonce = Nonce::assume_unique_for_key(nonce.try_into()?);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(head), body);
    let tag = tag.map_err(|_| anyhow::anyhow!("it is too large to be encrypted"))?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

pub fn open(passphrase: &Passphrase, sealed: &[u8]) -> Result<Vec<u8>> {
    let (head, body) = sealed.split_at_checked(HEAD).context("it is cut short")?;
    let (iterations, random) = head[MAGIC.len()..].split_at(4);
    let iterations = u32::from_le_bytes(iterations.try_into()?);
    ensure!(iterations <= MOST_ITERATIONS, "it asks for {iterations} rounds of its passphrase");
    let iterations = NonZeroU32::new(iterations).context("it is damaged")?;
    let (salt, nonce) = random.split_at(SALT);
    let key = passphrase.key(iterations, salt);
    let mut plain = body.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce.try_into()?);
    let opened = key.open_in_place(nonce, Aad::from(head), &mut plain);
    let length = opened.map_err(|_| anyhow::anyhow!("its passphrase is another one, or it has been changed"))?.len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_what_nobody_changed() {
        let (right, wrong) = (Passphrase(b"correct horse".to_vec()), Passphrase(b"incorrect horse".to_vec()));
        let sealed = seal(&right, b"the cluster").expect("sealed");
        assert!(is_sealed(&sealed) && !sealed.windows(7).any(|part| part == b"cluster"));
        assert_eq!(open(&right, &sealed).expect("opened"), b"the cluster");
        assert!(open(&wrong, &sealed).is_err());
        for at in [MAGIC.len() + 4, HEAD - 1, HEAD + 1, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&right, &changed).is_err(), "changed at {at}");
        }
        assert!(open(&right, &sealed[..HEAD - 1]).is_err());
    }

    #[test]
    fn passphrases_are_a_line_and_not_short() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("passphrase");
        fs::write(&file, " correct horse \nand more\n").expect("written");
        assert_eq!(Passphrase::read(&file).expect("read").0, b"correct horse");
        fs::write(&file, "short\n").expect("written");
        assert!(Passphrase::read(&file).is_err_and(|error| error.to_string().contains("shorter than 12")));
    }
}
