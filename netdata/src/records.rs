//! The small files from which a restarted agent knows again which pod has which address.
//!
//! They lie under the run directory, `network/ips/<address>`: a reboot clears it, and with it go the network namespaces
//! that the addresses were for.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};

use crate::{
    cidr::Cidr,
    error::{Error, Result},
    ips::Allocator,
};

/// The file system of namespaces; the mark of a path that still holds one. (`NSFS_MAGIC` of linux/magic.h)
const NSFS: FsType = FsType(0x6e73_6673);

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

        let mut all = records.restore("10.244.1.0/29".parse().unwrap()).unwrap();
        assert_eq!(all.get("alive"), Some(Ipv4Addr::new(10, 244, 1, 3)));
        assert_eq!(all.get("dead"), None);
        assert_eq!(all.allocate("new").unwrap(), Ipv4Addr::new(10, 244, 1, 4));
        assert_eq!(fs::read_dir(&records.dir).unwrap().count(), 1);
        records.remove(Ipv4Addr::new(10, 244, 1, 3)).unwrap();
        records.remove(Ipv4Addr::new(10, 244, 1, 3)).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
