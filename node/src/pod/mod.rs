//! One pod on this node.
//!
//! - [`world`]: what is known about it
//! - [`plan`]: pure: what to do about it
//! - [`status`], [`qos`]: pure: what the API is told about it
//! - [`spec`]: pure: what the runtime is asked for
//! - [`recall`]: pure: what is known after a restart of the agent
//! - [`worker`]: the task that looks, plans and acts, with [`act`] and [`fetch`], [`fold`] and [`tell`]
//! - [`checkpoint`]: what is kept on disk for a start without the API
//! - [`manager`]: which pods have a worker

pub mod plan;
pub mod qos;
pub mod recall;
pub mod spec;
pub mod status;
pub mod world;

mod act;
mod checkpoint;
mod fetch;
mod fold;
pub mod manager;
mod tell;
mod worker;

/// An error with all its causes, for an event or a log line.
pub fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
