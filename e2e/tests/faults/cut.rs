//! What the network does to a host, as rules inside of it. The hosts around it notice nothing but silence.

use anyhow::Result;
use e2e::host::Host;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// From everybody, clients as well.
    Unplugged,
    /// From these, in both directions.
    From(Vec<String>),
    /// What it says to these is lost; what they say arrives.
    Mute(Vec<String>),
    /// What these say is lost; what it says arrives.
    Deaf(Vec<String>),
    /// So many packets of a hundred, in each direction.
    Loss(u64),
}

impl Cut {
    fn rules(&self) -> (String, String) {
        let of = |which: &str, addresses: &[String]| format!("ip {which} {{ {} }} drop", addresses.join(", "));
        match self {
            Cut::Unplugged => ("drop".to_owned(), "drop".to_owned()),
            Cut::From(others) => (of("saddr", others), of("daddr", others)),
            Cut::Mute(others) => (String::new(), of("daddr", others)),
            Cut::Deaf(others) => (of("saddr", others), String::new()),
            Cut::Loss(percent) => {
                let rule = format!("numgen random mod 100 < {percent} drop");
                (rule.clone(), rule)
            }
        }
    }

    fn ruleset(&self) -> String {
        let (incoming, outgoing) = self.rules();
        format!(
            "table inet faults {{
                 chain incoming {{ type filter hook input priority -300; iif \"lo\" accept; {incoming}; }}
                 chain outgoing {{ type filter hook output priority -300; oif \"lo\" accept; {outgoing}; }}
             }}"
        )
    }

    /// In place of what this host suffered from before.
    pub fn apply(&self, host: &Host) -> Result<()> {
        mend(host)?;
        host.sh(&format!("nft -f - <<'E'\n{}\nE", self.ruleset())).map(drop)
    }
}

pub fn mend(host: &Host) -> Result<()> {
    host.sh("nft add table inet faults && nft delete table inet faults").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_its_rules() {
        let others = || vec!["10.77.0.2".to_owned(), "10.77.0.3".to_owned()];
        let (to, from) = ("ip daddr { 10.77.0.2, 10.77.0.3 } drop", "ip saddr { 10.77.0.2, 10.77.0.3 } drop");
        let lost = "numgen random mod 100 < 30 drop";
        for (cut, incoming, outgoing) in [
            (Cut::Unplugged, "drop", "drop"),
            (Cut::From(others()), from, to),
            (Cut::Mute(others()), "", to),
            (Cut::Deaf(others()), from, ""),
            (Cut::Loss(30), lost, lost),
        ] {
            assert_eq!(cut.rules(), (incoming.to_owned(), outgoing.to_owned()), "{cut:?}");
        }
    }
}
