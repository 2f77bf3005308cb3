//! Images: names, registries, pulling, unpacking and the store on disk.
//!
//! Read in this order: `types`, `reference`, `registries`, `beneath` (writing inside a directory
//! and nowhere else), `unpack` (a layer's tar into a directory), `store` (what is on disk), `pull`,
//! `import`.
//!
//! Invariant: a directory under `layers/` is complete: it was unpacked elsewhere from bytes whose digest
//! was checked, and renamed into place. Nothing else is ever mounted.

mod beneath;
mod reference;
mod registries;
mod types;

mod import;
mod layer;
mod manifest;
mod pull;
mod store;
mod unpack;

pub(crate) use beneath::Root;
pub use reference::{Reference, is_digest};
pub use registries::{Endpoint, Registries, Tls};
pub use store::ImageStore;
pub use types::{Auth, Collect, Collected, Image, ImageConfig, ImageError, PullPolicy};

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}
