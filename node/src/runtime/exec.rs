//! The streams of a process in a container.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Error, ExitStatus};

/// What to join of a container's first process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSpec {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A running process's streams. Dropping it closes them; it does not end the process.
pub struct ExecSession {
    /// Dropping it is the end of the process's input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// With a terminal, everything the process prints.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Never with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Only with a terminal.
    pub resizer: Option<Resizer>,
}

impl ExecSession {
    /// Waits for the process's end.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        Err(Error::NoSandbox { uid: String::new() })
    }
}

/// Sets a terminal's size.
#[derive(Clone)]
pub struct Resizer {}

impl Resizer {
    pub async fn resize(&self, _columns: u16, _rows: u16) -> Result<(), Error> {
        Ok(())
    }
}
