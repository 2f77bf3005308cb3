//! The table of kinds. To serve a further kind is one file under `kinds/` and one row in [`ALL`].

use serde_json::Value;

use crate::{decode::DecodeError, schema, status::Cause, table::Column};

/// Every built-in kind that the server serves.
pub const ALL: &[&Kind] = crate::kinds::ALL;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// Which part of an object a write may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but `status`.
    Main,
    /// Only `status` (and metadata that a status update may carry).
    Status,
}

/// All that the generic handlers need to know about a kind.
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    /// `/status` exists, and plain updates leave `status` alone.
    pub has_status: bool,
    /// `/scale` exists.
    pub scale: Option<&'static Scale>,
    /// Further subresources that the server implements by name: `log`, `exec`, `binding`, ...
    pub subresources: &'static [Subresource],
    /// The type's name in [`crate::schema`] and OpenAPI, such as `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    pub columns: &'static [Column],
    pub strategy: &'static dyn Strategy,
    /// What discovery says may be done with the objects.
    pub verbs: &'static [&'static str],
    /// Set when the objects are those of another kind in another shape.
    pub alias: Option<&'static Alias>,
}

/// A kind whose objects are stored as another kind's: `events.k8s.io/v1` over `v1` events.
pub struct Alias {
    /// The kind under whose key and shape the objects are stored, validated and defaulted.
    pub stored: &'static Kind,
    /// From this kind's shape to the stored one.
    pub to_stored: fn(&mut Value),
    /// From the stored shape to this kind's.
    pub from_stored: fn(&mut Value),
}

/// The verbs of a kind that can do everything.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Where a kind keeps what `/scale` shows, as JSON pointers.
pub struct Scale {
    pub replicas: &'static str,
    pub status_replicas: &'static str,
    /// A label selector object or a plain map of labels.
    pub selector: &'static str,
}

/// A subresource with a handler of its own, as discovery shows it.
pub struct Subresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// What is special about a kind; the defaults are right for a plain object without a status.
pub trait Strategy: Sync {
    /// Fills in what the client left out. Runs on every decoded object, before validation; must be idempotent.
    fn default(&self, _object: &mut Value) {}

    /// Last changes before a new object is validated (the caller has already reset `status`, set uid, time, generation 1).
    fn prepare_create(&self, _object: &mut Value) {}

    /// Carries over what an update may not touch. `part` says whether this is `/status` or the object itself. The
    /// caller has restored immutable metadata and the part that is not being written, and raises `generation` when
    /// `spec` changed.
    fn prepare_update(&self, _new: &mut Value, _old: &Value, _part: Part) {}

    /// All that is wrong with a whole object, each cause naming its field.
    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// What is wrong with going from `old` to `new` (immutable fields). Runs beside [`Strategy::validate`].
    fn validate_update(&self, _new: &Value, _old: &Value, _part: Part) -> Vec<Cause> {
        Vec::new()
    }

    /// Seconds that a delete leaves the object for somebody to finish (pods); zero removes at once.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> i64 {
        0
    }

    /// The cells of one table row, in the order of [`Kind::columns`]. `now` is in seconds since the epoch.
    fn row(&self, object: &Value, now: i64) -> Vec<Value>;

    /// The value of a selectable field other than `metadata.name` and `metadata.namespace`: `Some("")` when the
    /// field is selectable but unset, `None` when the kind does not know it.
    fn field(&self, _object: &Value, _path: &str) -> Option<String> {
        None
    }
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`, as messages and store keys name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Checks a body against the kind's type and leaves it as a typed server would: nulls and unknown fields removed,
    /// times and quantities canonical. The answer names the unknown fields, such as `spec.foo`, for
    /// [`crate::decode::strict_message`] or warnings.
    pub fn decode(&self, object: &mut Value) -> Result<Vec<String>, DecodeError> {
        match schema::message(self.schema) {
            Some(message) => Ok(schema::decode(message, object)?),
            None => Ok(Vec::new()),
        }
    }

    /// The kind under which objects are stored: this one, but for an alias.
    pub fn stored(&'static self) -> &'static Kind {
        self.alias.map_or(self, |alias| alias.stored)
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}

/// The kind that a URL names.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind that a body names.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.kind == kind && k.api_version() == api_version)
}
