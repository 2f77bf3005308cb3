//! Who the members are and where each is found: what Raft knows of them, and what they say of themselves.
//!
//! Raft knows members by number only. What else is known of one stands in the key space like everything else, under
//! [`MEMBERS`]: it is replicated, survives what the other keys survive, and a change of address is a put.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Snapshot,
    disk::{Disk, Mode, RealDisk},
    log::failed,
    types::prefix_end,
};

/// The prefix of the keys that describe members.
pub const MEMBERS: &[u8] = b"/minik8s/members/";

/// The key whose value numbers the lives of a group: a restore and a recovery begin a new one. Members of an earlier life
/// may still be there, in a majority even, and must not be taken for members of this one.
pub const GENERATION: &[u8] = b"/minik8s/generation";

/// The group as one member knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    pub member_id: u64,
    /// 0 while there is none.
    pub leader_id: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// Of the others those whom this member, while it leads, has heard of lately.
    pub active: Vec<u64>,
}

impl Group {
    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.leader_id != 0 && self.leader_id == self.member_id
    }

    pub fn has(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// What is known of one member besides its number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberInfo {
    pub name: String,
    /// Where other members reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Where clients of the etcd API reach it.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
    /// It belongs to the group no longer, and never will again. Kept for the group's whole life, so that it can be told whenever it
    /// comes back, and so that a late change cannot bring its number in again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

impl MemberInfo {
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings can be written").into()
    }
}

pub fn member_key(id: u64) -> Bytes {
    [MEMBERS, format!("{id:016x}").as_bytes()].concat().into()
}

impl Snapshot {
    /// Which life of its group this state is of; 0 for the first.
    pub fn generation(&self) -> u64 {
        let number = self.get(GENERATION).and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
        number.unwrap_or(0)
    }

    /// What is known of each member, removed ones among them. What cannot be read is passed over.
    pub fn members(&self) -> BTreeMap<u64, MemberInfo> {
        let read = |kv: &std::sync::Arc<crate::KeyValue>| {
            let id = std::str::from_utf8(kv.key.strip_prefix(MEMBERS)?).ok()?;
            Some((u64::from_str_radix(id, 16).ok()?, serde_json::from_slice(&kv.value).ok()?))
        };
        self.range(MEMBERS..&prefix_end(MEMBERS)).filter_map(read).collect()
    }
}

/// In a store's directory, the number of a member that has joined a group. A founder has no such file.
fn path(dir: &Path) -> PathBuf {
    dir.join("member")
}

/// Makes the directory of a store that belongs to somebody else's group, as member `id`. It holds nothing until the
/// others have sent it everything.
pub fn prepare_join(dir: &Path, id: u64) -> Result<(), Error> {
    let target = path(dir);
    RealDisk.create_dir_all(dir).map_err(failed("create", dir))?;
    let draft = target.with_extension("draft");
    let mut file = RealDisk.open(&draft, Mode::New).map_err(failed("create", &draft))?;
    file.write_at(0, format!("{id:016x}\n").as_bytes()).map_err(failed("write", &draft))?;
    file.sync().map_err(failed("sync", &draft))?;
    RealDisk.rename(&draft, &target).map_err(failed("rename", &draft))?;
    RealDisk.sync_dir(dir).map_err(failed("sync", dir))
}

/// Whether there is a store in a directory, of a founder or of one who has joined. The directory alone says nothing: it may
/// be a fresh disk's.
pub fn is_there(dir: &Path) -> bool {
    let snapshots = RealDisk.list(&dir.join("snapshot")).unwrap_or_default();
    path(dir).exists() || snapshots.iter().any(|name| name.ends_with(".snapshot"))
}

/// The number that [`prepare_join`] wrote; none for a founder.
pub fn joined_as(dir: &Path) -> Result<Option<u64>, Error> {
    let path = path(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let reason = "it holds no member's number".to_owned();
    u64::from_str_radix(text.trim(), 16).map(Some).map_err(|_| Error::Corrupt { path, offset: 0, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("store");
        assert_eq!(joined_as(&store).expect("nothing there"), None);
        prepare_join(&store, 7).expect("written");
        prepare_join(&store, u64::MAX).expect("written again");
        assert_eq!(joined_as(&store).expect("there"), Some(u64::MAX));
        assert!(is_there(&store) && !is_there(dir.path()));
        fs::write(store.join("member"), "x").expect("damaged");
        assert!(matches!(joined_as(&store), Err(Error::Corrupt { .. })));
    }
}
