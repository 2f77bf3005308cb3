//! The per-pod process that outlives the agent.

use std::ffi::OsString;
use std::process::ExitCode;

/// The hidden subcommand `minik8s shim <args>`; `args` begins behind the word `shim`. Call it before any
/// thread or async runtime exists.
pub fn main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
