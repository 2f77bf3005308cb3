//! What the cluster's objects are: kinds, defaults, validation, selectors, patches. No I/O, no clock, no randomness.
//!
//! An object travels through the server as a JSON value in canonical form (what a client would read back); typed
//! structs of `k8s-openapi` are used where a hook looks deep into a kind. Reading order:
//!
//! - [`registry`]: one row per kind; everything generic is driven by it
//! - [`kinds`]: one file per kind with all that is special about it
//! - [`decode`]: from a client's body to an object of a kind, saying what does not fit
//! - [`field`], [`names`]: how rules are written and what they report
//! - [`meta`], [`status`], [`selector`], [`quantity`], [`time`], [`table`]: the vocabulary
//! - [`schema`]: one table of fields, from which strict decoding, [`protobuf`], [`patch`] and [`openapi`] derive
//!
//! Invariant: nothing in here reads the time or draws a random number; both are arguments.

pub mod registry;

pub mod kinds;

pub mod decode;
pub mod field;
pub mod names;

pub mod meta;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod table;
pub mod time;

pub mod schema;

pub mod openapi;
pub mod patch;
pub mod protobuf;
