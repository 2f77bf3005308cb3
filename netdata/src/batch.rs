//! What a table holds, the difference between two of them as commands, and the commands in nft's own words.
//!
//! The words are text, not JSON: the JSON parser of nft 1.0.6 takes the declaration of a map whose values are
//! `address . port` for a set, so a whole table could not be put in place in one transaction by JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// The one table that is ours. All that is in it is ours, and nothing outside it is touched.
pub const TABLE: &str = "ip minik8s";

/// Things in the table beside its skeleton, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// A set's name and its declaration.
    pub sets: BTreeMap<String, String>,
    /// A map's name and its declaration.
    pub maps: BTreeMap<String, String>,
    /// A chain's name and its rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// An element by set or map and key, with its value if it is in a map.
    pub elements: BTreeMap<(String, String), Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    AddSet { name: String, body: String },
    AddMap { name: String, body: String },
    AddChain { name: String },
    AddRule { chain: String, rule: String },
    FlushChain { name: String },
    DeleteElement { of: String, key: String },
    AddElement { of: String, key: String, value: Option<String> },
    DeleteChain { name: String },
    DeleteMap { name: String },
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
        for (name, body) in added(&old.sets, &new.sets) {
            commands.push(Command::AddSet { name, body });
        }
        for (name, body) in added(&old.maps, &new.maps) {
            commands.push(Command::AddMap { name, body });
        }
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
        // A changed element is deleted and added: the kernel knows no other way to change a value.
        for ((of, key), value) in &old.elements {
            if new.elements.get(&(of.clone(), key.clone())) != Some(value) {
                commands.push(Command::DeleteElement { of: of.clone(), key: key.clone() });
            }
        }
        for ((of, key), value) in &new.elements {
            if old.elements.get(&(of.clone(), key.clone())) != Some(value) {
                commands.push(Command::AddElement { of: of.clone(), key: key.clone(), value: value.clone() });
            }
        }
        let gone: BTreeSet<&String> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
        commands.extend(gone.iter().map(|name| Command::FlushChain { name: (*name).clone() }));
        commands.extend(gone.iter().map(|name| Command::DeleteChain { name: (*name).clone() }));
        commands.extend(removed(&old.maps, &new.maps).map(|name| Command::DeleteMap { name }));
        commands.extend(removed(&old.sets, &new.sets).map(|name| Command::DeleteSet { name }));
        Batch { commands }
    }
}

/// Declarations that are new. A name holds all that its declaration depends on, so none changes under its name.
fn added<'a>(
    old: &'a BTreeMap<String, String>,
    new: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (String, String)> + 'a {
    new.iter().filter(|(name, _)| !old.contains_key(*name)).map(|(name, body)| (name.clone(), body.clone()))
}

fn removed<'a>(
    old: &'a BTreeMap<String, String>,
    new: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = String> + 'a {
    old.keys().filter(|name| !new.contains_key(*name)).cloned()
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl fmt::Display for Batch {
    /// One line a command, but neighbouring elements of one map in one line: nft reads them several times faster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in self.commands.chunk_by(same_line) {
            match &run[0] {
                Command::AddElement { of, .. } => elements(f, "add", of, run)?,
                Command::DeleteElement { of, .. } => elements(f, "delete", of, run)?,
                Command::AddSet { name, body } => writeln!(f, "add set {TABLE} {name} {{ {body}; }}")?,
                Command::AddMap { name, body } => writeln!(f, "add map {TABLE} {name} {{ {body}; }}")?,
                Command::AddChain { name } => writeln!(f, "add chain {TABLE} {name}")?,
                Command::AddRule { chain, rule } => writeln!(f, "add rule {TABLE} {chain} {rule}")?,
                Command::FlushChain { name } => writeln!(f, "flush chain {TABLE} {name}")?,
                Command::DeleteChain { name } => writeln!(f, "delete chain {TABLE} {name}")?,
                Command::DeleteMap { name } => writeln!(f, "delete map {TABLE} {name}")?,
                Command::DeleteSet { name } => writeln!(f, "delete set {TABLE} {name}")?,
            }
        }
        Ok(())
    }
}

fn same_line(a: &Command, b: &Command) -> bool {
    match (a, b) {
        (Command::AddElement { of: a, .. }, Command::AddElement { of: b, .. }) => a == b,
        (Command::DeleteElement { of: a, .. }, Command::DeleteElement { of: b, .. }) => a == b,
        _ => false,
    }
}

fn elements(f: &mut fmt::Formatter<'_>, verb: &str, of: &str, run: &[Command]) -> fmt::Result {
    write!(f, "{verb} element {TABLE} {of} {{ ")?;
    for (index, command) in run.iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        match command {
            Command::AddElement { key, value: Some(value), .. } => write!(f, "{key} : {value}")?,
            Command::AddElement { key, .. } | Command::DeleteElement { key, .. } => f.write_str(key)?,
            _ => {}
        }
    }
    f.write_str(" }\n")
}
