//! Which pod has which address: a pure allocator, and the small files from which a restarted agent fills it again.
//!
//! The files lie under the run directory, `network/ips/<address>`: a reboot clears it, and with it go the network
//! namespaces that the addresses were for.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};

use crate::{
    cidr::Cidr,
    error::{Error, Result},
};

/// The file system of namespaces; the mark of a path that still holds one. (`NSFS_MAGIC` of linux/magic.h)
const NSFS: FsType = FsType(0x6e73_6673);

/// Hands out the addresses of a node's network. The first and the last are no hosts', and the second is the bridge's.
#[derive(Debug)]
pub struct Allocator {
    cidr: Cidr,
    used: BTreeMap<Ipv4Addr, Holder>,
    // Invariant: exactly the pods that hold an address in `used`.
    pods: HashMap<String, Ipv4Addr>,
    /// Where the search for a free one begins: an address that was just freed comes again as late as possible, since
    /// others may still send to its former pod.
    next: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Pod(String),
    /// Its pod is gone and its link is still being taken away.
    Leaving,
}

impl Allocator {
    pub fn new(cidr: Cidr) -> Allocator {
        Allocator { cidr, used: BTreeMap::new(), pods: HashMap::new(), next: 2 }
    }

    /// The bridge's address, by which pods leave.
    pub fn gateway(cidr: Cidr) -> Ipv4Addr {
        cidr.nth(1).unwrap_or(cidr.base())
    }

    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    pub fn get(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.pods.get(pod_uid).copied()
    }

    /// The pod's address: the one it has, or a free one.
    pub fn allocate(&mut self, pod_uid: &str) -> Result<Ipv4Addr> {
        if let Some(ip) = self.get(pod_uid) {
            return Ok(ip);
        }
        let last = self.cidr.len().saturating_sub(1);
        let ip = (self.next..last).chain(2..self.next.min(last)).find_map(|n| {
            let ip = self.cidr.nth(n)?;
            (!self.used.contains_key(&ip)).then_some((n, ip))
        });
        let Some((n, ip)) = ip else { return Err(Error::NoAddress { cidr: self.cidr, used: self.used.len() }) };
        self.next = n + 1;
        self.take(ip, pod_uid);
        Ok(ip)
    }

    /// Takes over what a file says. Refused when the address is not ours, or held: the file is then worth nothing.
    pub fn adopt(&mut self, ip: Ipv4Addr, pod_uid: &str) -> bool {
        let fits = self.cidr.contains(ip) && !self.used.contains_key(&ip) && !self.pods.contains_key(pod_uid);
        if fits {
            self.take(ip, pod_uid);
            self.next = self.next.max(ip.to_bits() - self.cidr.base().to_bits() + 1);
        }
        fits
    }

    /// The pod has it no longer, and nobody else has it yet.
    pub fn leave(&mut self, pod_uid: &str) -> Option<Ipv4Addr> {
        let ip = self.pods.remove(pod_uid)?;
        self.used.insert(ip, Holder::Leaving);
        Some(ip)
    }

    /// An address that was left is free.
    pub fn free(&mut self, ip: Ipv4Addr) {
        if self.used.get(&ip) == Some(&Holder::Leaving) {
            self.used.remove(&ip);
        }
    }

    fn take(&mut self, ip: Ipv4Addr, pod_uid: &str) {
        self.used.insert(ip, Holder::Pod(pod_uid.to_owned()));
        self.pods.insert(pod_uid.to_owned(), ip);
    }
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub pod_uid: String,
    pub netns: PathBuf,
}

/// The directory of the files.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    pub fn open(run_dir: &Path) -> Result<Records> {
        let dir = run_dir.join("network/ips");
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        Ok(Records { dir })
    }

    /// Whole or not at all: written aside and renamed. No fsync: what a power cut loses, the reboot makes void.
    pub fn put(&self, ip: Ipv4Addr, record: &Record) -> Result<()> {
        let path = self.dir.join(ip.to_string());
        let aside = self.dir.join(format!(".{ip}"));
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        fs::write(&aside, bytes).map_err(Error::file("write", &aside))?;
        fs::rename(&aside, &path).map_err(Error::file("put in place", &path))
    }

    pub fn remove(&self, ip: Ipv4Addr) -> Result<()> {
        let path = self.dir.join(ip.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// An allocator with the addresses whose pods still have their network namespace; the other files are removed.
    pub fn restore(&self, cidr: Cidr) -> Result<Allocator> {
        let mut allocator = Allocator::new(cidr);
        let entries = fs::read_dir(&self.dir).map_err(Error::file("read", &self.dir))?;
        for entry in entries {
            let path = entry.map_err(Error::file("read", &self.dir))?.path();
            let ip = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            let live = match (ip, &record) {
                (Some(ip), Some(record)) => is_netns(&record.netns) && allocator.adopt(ip, &record.pod_uid),
                _ => false,
            };
            if !live {
                fs::remove_file(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(allocator)
    }
}

/// Whether a namespace is mounted there. The empty file on which it was mounted stays behind when it goes.
fn is_netns(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr() -> Cidr {
        "10.244.1.0/29".parse().unwrap()
    }

    #[test]
    fn addresses_are_handed_out_once_and_come_again_late() {
        let mut all = Allocator::new(cidr());
        let give = |all: &mut Allocator, uid: &str| all.allocate(uid).map(|ip| ip.octets()[3]).ok();
        assert_eq!(["a", "b", "c"].map(|uid| give(&mut all, uid)), [Some(2), Some(3), Some(4)]);
        assert_eq!(give(&mut all, "a"), Some(2), "asked again, the same");
        let left = all.leave("a").unwrap();
        assert_eq!(give(&mut all, "d"), Some(5));
        assert_eq!(give(&mut all, "e"), Some(6));
        assert_eq!(give(&mut all, "f"), None, "one that is still being left is not free");
        all.free(left);
        assert_eq!(give(&mut all, "f"), Some(2));
        assert!(matches!(all.allocate("g"), Err(Error::NoAddress { used: 5, .. })));
        assert_eq!(all.leave("nobody"), None);
        all.free(Ipv4Addr::new(10, 244, 1, 3));
        assert_eq!(all.get("b"), Some(Ipv4Addr::new(10, 244, 1, 3)), "only what was left can be freed");
    }

    #[test]
    fn files_bring_back_addresses_of_live_namespaces_only() {
        let dir = std::env::temp_dir().join(format!("minik8s-ips-{}", std::process::id()));
        let records = Records::open(&dir).unwrap();
        let put = |last: u8, uid: &str, netns: &str| {
            let record = Record { pod_uid: uid.into(), netns: netns.into() };
            records.put(Ipv4Addr::new(10, 244, 1, last), &record).unwrap();
        };
        put(3, "alive", "/proc/self/ns/net");
        put(4, "dead", "/nowhere");
        put(5, "no-namespace-any-more", "/etc/hostname");
        put(200, "of-another-network", "/proc/self/ns/net");
        fs::write(records.dir.join("10.244.1.6"), "torn").unwrap();

        let mut all = records.restore(cidr()).unwrap();
        assert_eq!(all.get("alive"), Some(Ipv4Addr::new(10, 244, 1, 3)));
        assert_eq!(all.get("dead"), None);
        assert_eq!(all.allocate("new").unwrap(), Ipv4Addr::new(10, 244, 1, 4));
        assert_eq!(fs::read_dir(&records.dir).unwrap().count(), 1);
        records.remove(Ipv4Addr::new(10, 244, 1, 3)).unwrap();
        records.remove(Ipv4Addr::new(10, 244, 1, 3)).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
