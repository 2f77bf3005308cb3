//! Who owns whom, over all kinds, as metadata shows it.

use std::collections::{HashMap, HashSet};

use api::registry::Kind;
use client::{Metadata, Sighting};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::plan::Resource;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// One object that has something to do with ownership.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub fate: Fate,
}

/// What is to become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Living,
    /// On its way out, and the garbage collector has no part in it.
    Leaving,
    /// Leaves when its dependents that block it have gone.
    Foreground,
    /// Leaves when its dependents have been let go.
    Orphaning,
}

impl Fate {
    pub fn of(metadata: &Metadata) -> Fate {
        let has = |finalizer: &str| metadata.finalizers.iter().any(|f| f == finalizer);
        match metadata.deletion_timestamp {
            None => Fate::Living,
            Some(_) if has(ORPHAN) => Fate::Orphaning,
            Some(_) if has(FOREGROUND) => Fate::Foreground,
            Some(_) => Fate::Leaving,
        }
    }
}

/// Invariant: `present` holds the uid of every object seen; `nodes` only those with owners, or with a part of ours in
/// their end: of ten thousand objects without owners the graph keeps ten thousand uids and nothing else.
/// Invariant: `dependents[o]` holds exactly the nodes whose `owners` name `o`.
#[derive(Default)]
pub struct Graph {
    present: HashMap<Resource, HashSet<String>>,
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
    /// Kinds that have been listed once. Before all have, an owner that was not seen says nothing.
    listed: HashSet<Resource>,
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn is_present(&self, uid: &str) -> bool {
        self.present.values().any(|uids| uids.contains(uid))
    }

    pub fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Takes in what was seen of a kind. Tells whose state may call for something now, by uid.
    pub fn take_in(&mut self, kind: &'static Kind, sighting: Sighting) -> Vec<String> {
        match sighting {
            Sighting::Put(metadata) => self.put(kind, metadata),
            Sighting::Gone(metadata) => self.gone(kind, &metadata.uid),
            Sighting::All(all) => {
                let uids: HashSet<&str> = all.iter().map(|m| m.uid.as_str()).collect();
                let known = self.present.entry(Resource::row(kind)).or_default();
                let lost: Vec<String> = known.iter().filter(|u| !uids.contains(u.as_str())).cloned().collect();
                let mut touched: Vec<String> = lost.iter().flat_map(|uid| self.gone(kind, uid)).collect();
                touched.extend(all.into_iter().flat_map(|m| self.put(kind, m)));
                self.listed.insert(Resource::row(kind));
                touched
            }
        }
    }

    pub fn is_listed(&self, kind: &'static Kind) -> bool {
        self.listed.contains(&Resource::row(kind))
    }

    /// Everything that may call for something as things stand: for a start, and after a gap.
    pub fn suspects(&self) -> Vec<String> {
        let suspect = |(_, node): &(&String, &Node)| {
            let lost = node.owners.iter().any(|o| !self.is_present(&o.uid) || self.waits(&o.uid));
            lost || matches!(node.fate, Fate::Foreground | Fate::Orphaning)
        };
        self.nodes.iter().filter(suspect).map(|(uid, _)| uid.clone()).collect()
    }

    fn waits(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|n| n.fate == Fate::Foreground)
    }

    fn put(&mut self, kind: &'static Kind, metadata: Metadata) -> Vec<String> {
        self.present.entry(Resource::row(kind)).or_default().insert(metadata.uid.clone());
        let fate = Fate::of(&metadata);
        let uid = metadata.uid;
        let matters = !metadata.owner_references.is_empty() || matches!(fate, Fate::Foreground | Fate::Orphaning);
        let (name, namespace, owners) = (metadata.name, metadata.namespace, metadata.owner_references);
        let new = matters.then_some(Node { resource: Resource::row(kind), namespace, name, owners, fate });
        let old = self.nodes.get(&uid);
        if old == new.as_ref() {
            return Vec::new();
        }
        let old = self.unlink(&uid);
        let mut touched = Vec::new();
        // An owner that waits for its dependents may have one less to wait for.
        touched.extend(old.iter().flat_map(|n| &n.owners).map(|o| o.uid.clone()).filter(|o| self.waits(o)));
        let Some(new) = new else { return touched };
        for owner in &new.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let lost = new.owners.iter().any(|o| !self.is_present(&o.uid) || self.waits(&o.uid));
        if lost || matches!(fate, Fate::Foreground | Fate::Orphaning) {
            touched.push(uid.clone());
        }
        if fate == Fate::Foreground && old.is_none_or(|n| n.fate != fate) {
            touched.extend(self.dependents(&uid));
        }
        self.nodes.insert(uid, new);
        touched
    }

    fn gone(&mut self, kind: &'static Kind, uid: &str) -> Vec<String> {
        if let Some(uids) = self.present.get_mut(&Resource::row(kind)) {
            uids.remove(uid);
        }
        let old = self.unlink(uid);
        let mut touched = self.dependents(uid);
        touched.extend(old.into_iter().flat_map(|n| n.owners).map(|o| o.uid).filter(|o| self.waits(o)));
        touched
    }

    fn unlink(&mut self, uid: &str) -> Option<Node> {
        let old = self.nodes.remove(uid)?;
        for owner in &old.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::time;

    fn kind(plural: &str) -> &'static Kind {
        api::registry::ALL.iter().find(|k| k.plural == plural).expect("a kind")
    }

    fn object(uid: &str, owners: &[&str], deleting: Option<&str>) -> Metadata {
        Metadata {
            uid: uid.into(),
            name: uid.into(),
            namespace: "x".into(),
            deletion_timestamp: deleting.map(|_| time(1)),
            finalizers: deleting.into_iter().filter(|f| !f.is_empty()).map(Into::into).collect(),
            owner_references: owners
                .iter()
                .map(|o| OwnerReference { uid: (*o).into(), ..OwnerReference::default() })
                .collect(),
            ..Metadata::default()
        }
    }

    #[test]
    fn the_end_of_an_owner_concerns_its_dependents() {
        let mut graph = Graph::default();
        let (sets, pods) = (kind("replicasets"), kind("pods"));
        assert!(graph.take_in(sets, Sighting::Put(object("set", &[], None))).is_empty());
        assert!(graph.take_in(pods, Sighting::Put(object("a", &["set"], None))).is_empty());
        assert_eq!(graph.take_in(pods, Sighting::Put(object("b", &["lost"], None))), ["b"]);
        assert_eq!(graph.take_in(sets, Sighting::Gone(object("set", &[], None))), ["a"]);
        assert!(graph.take_in(pods, Sighting::Gone(object("a", &["set"], None))).is_empty());
        assert!(graph.dependents("set").is_empty() && graph.node("set").is_none());
    }

    #[test]
    fn a_waiting_owner_is_asked_when_a_dependent_goes() {
        let mut graph = Graph::default();
        let (sets, pods) = (kind("replicasets"), kind("pods"));
        graph.take_in(sets, Sighting::Put(object("set", &[], None)));
        graph.take_in(pods, Sighting::Put(object("a", &["set"], None)));
        let mut touched = graph.take_in(sets, Sighting::Put(object("set", &[], Some(FOREGROUND))));
        touched.sort();
        assert_eq!(touched, ["a", "set"]);
        assert_eq!(graph.take_in(pods, Sighting::Gone(object("a", &["set"], None))), ["set"]);
    }

    #[test]
    fn a_list_tells_what_was_missed() {
        let mut graph = Graph::default();
        let (sets, pods) = (kind("replicasets"), kind("pods"));
        graph.take_in(pods, Sighting::All(vec![object("a", &["set"], None), object("free", &[], None)]));
        graph.take_in(sets, Sighting::All(vec![object("set", &[], None)]));
        assert!(graph.suspects().is_empty());
        assert!(graph.is_listed(sets) && graph.is_listed(pods));
        assert_eq!(graph.take_in(sets, Sighting::All(vec![])), ["a"]);
        assert_eq!(graph.suspects(), ["a"]);
        assert!(graph.node("free").is_none() && graph.is_present("free"));
    }
}
