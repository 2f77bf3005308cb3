//! One file per kind.

use crate::registry::Kind;

pub const ALL: &[&Kind] = &[];
