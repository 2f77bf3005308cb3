//! What a table holds, and the difference between two of them as commands.
//!
//! Here is what each rule and element is; how nft is told of it is in `json` and in `text`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{
    cidr::Cidr,
    frontend::{Face, Frontend, Protocol},
};

/// The one table that is ours, of the family `ip`. All that is in it is ours, and nothing outside it is touched.
pub const TABLE: &str = "minik8s";

/// The set of addresses that must be masqueraded when they call themselves.
pub const HAIRPIN: &str = "hairpin";

/// The chain that tells the caller at once that nobody answers.
pub const REFUSE: &str = "refuse";

/// The chain that drops.
pub const SILENT: &str = "silent";

/// Things in the table beside its skeleton, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// Sets of clients that a rule remembers, and for how many seconds.
    pub sets: BTreeMap<String, u32>,
    /// Maps to endpoints, and whose frontends they are asked for.
    pub maps: BTreeMap<String, Face>,
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// An element by set or map and place in it, with what it leads to if it is in a map.
    pub elements: BTreeMap<(String, Slot), Option<Target>>,
}

/// The key of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    Frontend(Frontend),
    /// From this address to this address.
    Itself(Ipv4Addr),
}

/// What an element of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Chain(String),
    Endpoint(SocketAddrV4),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// To the endpoint that this map has for the packet's frontend.
    DnatByMap {
        face: Face,
        map: String,
    },
    /// On to one of these chains, by chance.
    Draw {
        chains: Vec<String>,
    },
    /// To one of these, by chance.
    DnatDraw {
        protocol: Protocol,
        endpoints: Vec<SocketAddrV4>,
    },
    Dnat {
        protocol: Protocol,
        endpoint: SocketAddrV4,
    },
    /// Callers from elsewhere get no further.
    DropOthers {
        sources: Vec<Cidr>,
    },
    /// Callers in this set go on to this chain.
    GotoIfSeen {
        set: String,
        chain: String,
    },
    /// The caller is in this set from now on, for so long.
    Remember {
        set: String,
        seconds: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    AddSet { name: String, seconds: u32 },
    AddMap { name: String, face: Face },
    AddChain { name: String },
    AddRule { chain: String, rule: Rule },
    FlushChain { name: String },
    DeleteElement { of: String, slot: Slot },
    AddElement { of: String, slot: Slot, target: Option<Target> },
    DeleteChain { name: String },
    DeleteMap { name: String, face: Face },
    DeleteSet { name: String },
}

/// Commands that take effect all at once or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub commands: Vec<Command>,
}

impl Items {
    /// The commands that lead from one to the other. Their order is that of need: what is pointed at is there before
    /// what points at it, and goes after it. The kernel counts references command by command, also within a batch.
    pub fn diff(old: &Items, new: &Items) -> Batch {
        let mut commands = Vec::new();
        let sets = extra(&new.sets, &old.sets);
        commands.extend(sets.map(|(name, seconds)| Command::AddSet { name, seconds }));
        commands.extend(extra(&new.maps, &old.maps).map(|(name, face)| Command::AddMap { name, face }));
        for name in new.chains.keys().filter(|name| !old.chains.contains_key(*name)) {
            commands.push(Command::AddChain { name: name.clone() });
        }
        for (name, rules) in &new.chains {
            let was = old.chains.get(name);
            if was == Some(rules) {
                continue;
            }
            if was.is_some() {
                commands.push(Command::FlushChain { name: name.clone() });
            }
            let rules = rules.iter().map(|rule| Command::AddRule { chain: name.clone(), rule: rule.clone() });
            commands.extend(rules);
        }
        // A changed element is deleted and added: the kernel knows no other way to change what it leads to.
        for ((of, slot), target) in &old.elements {
            if new.elements.get(&(of.clone(), *slot)) != Some(target) {
                commands.push(Command::DeleteElement { of: of.clone(), slot: *slot });
            }
        }
        for ((of, slot), target) in &new.elements {
            if old.elements.get(&(of.clone(), *slot)) != Some(target) {
                commands.push(Command::AddElement { of: of.clone(), slot: *slot, target: target.clone() });
            }
        }
        let gone: BTreeSet<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
        commands.extend(gone.iter().map(|name| Command::FlushChain { name: (*name).clone() }));
        commands.extend(gone.iter().map(|name| Command::DeleteChain { name: (*name).clone() }));
        commands.extend(extra(&old.maps, &new.maps).map(|(name, face)| Command::DeleteMap { name, face }));
        commands.extend(extra(&old.sets, &new.sets).map(|(name, _)| Command::DeleteSet { name }));
        Batch { commands }
    }
}

/// What is in the first only. A name holds all that its declaration depends on, so none changes under its name.
fn extra<'a, T: Copy>(
    these: &'a BTreeMap<String, T>,
    those: &'a BTreeMap<String, T>,
) -> impl Iterator<Item = (String, T)> + 'a {
    these.iter().filter(|(name, _)| !those.contains_key(*name)).map(|(name, what)| (name.clone(), *what))
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Runs of commands that add elements to the same map, or delete from it; any other command is a run of its own.
    /// One statement for such a run is read by nft several times faster than one for each element.
    pub fn runs(&self) -> impl Iterator<Item = &[Command]> {
        self.commands.chunk_by(|a, b| match (a, b) {
            (Command::AddElement { of: a, .. }, Command::AddElement { of: b, .. })
            | (Command::DeleteElement { of: a, .. }, Command::DeleteElement { of: b, .. }) => a == b,
            _ => false,
        })
    }
}
