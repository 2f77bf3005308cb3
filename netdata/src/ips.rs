//! Which pod has which address.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use crate::{
    cidr::Cidr,
    error::{Error, Result},
};

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
}
