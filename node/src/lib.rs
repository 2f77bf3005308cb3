//! The node: images, sandboxes, containers, volumes, probes, logs.

pub mod image;
pub mod runtime;
pub mod shim;
