//! An IPv4 network.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An IPv4 network in CIDR form. Invariant: `base` has no bit set beyond the prefix, and `prefix` is at most 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IPv4 network such as 10.244.1.0/24")]
pub struct NotCidr(String);

impl Cidr {
    /// The network of that size around an address; none when the size is no prefix length.
    pub fn around(ip: Ipv4Addr, prefix: u8) -> Option<Cidr> {
        let host_bits = 32u32.checked_sub(u32::from(prefix))?;
        let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
        Some(Cidr { base: Ipv4Addr::from_bits(ip.to_bits() & mask), prefix })
    }

    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn contains(self, ip: Ipv4Addr) -> bool {
        Cidr::around(ip, self.prefix) == Some(self)
    }

    /// The nth address from the base on, if it is within the network.
    pub fn nth(self, n: u32) -> Option<Ipv4Addr> {
        let ip = Ipv4Addr::from_bits(self.base.to_bits().checked_add(n)?);
        self.contains(ip).then_some(ip)
    }

    /// How many addresses it has; the whole of IPv4 counts one less, to fit.
    pub fn len(self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// Never: the smallest network has one address.
    pub fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = NotCidr;

    fn from_str(text: &str) -> Result<Cidr, NotCidr> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            Cidr::around(ip.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| NotCidr(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = NotCidr;

    fn try_from(text: String) -> Result<Cidr, NotCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_hold_addresses() {
        let cidr: Cidr = "10.244.3.7/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.244.3.0/24");
        assert!(cidr.contains(Ipv4Addr::new(10, 244, 3, 255)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 244, 4, 0)));
        assert_eq!(cidr.nth(1), Some(Ipv4Addr::new(10, 244, 3, 1)));
        assert_eq!(cidr.nth(256), None);
        assert_eq!(cidr.len(), 256);
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        let host: Cidr = "1.2.3.4/32".parse().unwrap();
        assert_eq!((host.len(), host.nth(1)), (1, None));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/8", "10.0.0.0/x"] {
            assert_eq!(bad.parse::<Cidr>(), Err(NotCidr(bad.to_owned())));
        }
    }
}
