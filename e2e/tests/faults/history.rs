//! What was asked and answered: plain values, so that a history can be written down by hand.

use std::collections::BTreeMap;

/// Microseconds since the run began.
pub type Moment = u64;
/// A `resourceVersion`.
pub type Revision = u64;
/// A config map, as a number.
pub type Name = u16;
/// What a write puts into it. No two writes of a run have the same, so whatever is read names its writer.
pub type Value = u64;
pub type Uid = u128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub revision: Revision,
    pub uid: Uid,
    pub value: Value,
}

pub type Items = BTreeMap<Name, Item>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Create {
        name: Name,
        value: Value,
    },
    /// With `at` only if that is still the newest version.
    Update {
        name: Name,
        value: Value,
        at: Option<Revision>,
    },
    Patch {
        name: Name,
        value: Value,
    },
    Delete {
        name: Name,
        at: Option<Revision>,
    },
    Get {
        name: Name,
    },
    List,
    /// A list in several answers, which are of one revision all the same.
    Pages,
}

impl Request {
    pub fn verb(&self) -> &'static str {
        match self {
            Request::Create { .. } => "create",
            Request::Update { at: Some(_), .. } => "compare-and-swap",
            Request::Update { at: None, .. } => "update",
            Request::Patch { .. } => "patch",
            Request::Delete { .. } => "delete",
            Request::Get { .. } => "get",
            Request::List => "list",
            Request::Pages => "list in pages",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of a create, an update or a patch.
    Wrote(Item),
    Deleted(Uid),
    Got(Option<Item>),
    Listed(Revision, Items),
    /// It does not exist.
    NotFound,
    AlreadyExists,
    /// It is not at the revision that was named.
    Conflict,
    /// No answer, or one that says that it is not known: it may have been done, may yet be done, or never.
    Unknown,
    /// What no such request should be answered with.
    Odd(String),
}

impl Outcome {
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Wrote(_) | Outcome::Deleted(_) | Outcome::Got(_) | Outcome::Listed(..) => "ok",
            Outcome::NotFound | Outcome::AlreadyExists | Outcome::Conflict => "refused",
            Outcome::Unknown => "unknown",
            Outcome::Odd(_) => "odd",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub begun: Moment,
    pub ended: Moment,
    /// Which server was asked.
    pub server: usize,
    pub request: Request,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One event of a watch; the item of a deletion is the last one, at the deletion's revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    pub name: Name,
    pub item: Item,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Change(Change),
    /// A bookmark: everything up to here has been told.
    Progress(Revision),
}

impl Told {
    pub fn revision(&self) -> Revision {
        match self {
            Told::Change(change) => change.item.revision,
            Told::Progress(revision) => *revision,
        }
    }
}

/// What a watcher was told since it had listed at `from`, over all the times it had to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchLog {
    pub server: String,
    pub from: Revision,
    pub told: Vec<(Moment, Told)>,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub watches: Vec<WatchLog>,
}
