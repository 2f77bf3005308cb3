//! What can go wrong between the node and its shims.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::ImageError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("image {0} is not on this node")]
    NoImage(String),
    /// The pod has no sandbox, or its shim is gone.
    #[error("pod {uid}: no shim answers")]
    NoSandbox { uid: String },
    /// The specification cannot be carried out; trying again gives the same answer.
    #[error("{subject}: {message}")]
    Invalid { subject: String, message: String },
    /// The shim answered with an error; `message` names its cause.
    #[error("{operation} {subject}: {message}")]
    Shim { operation: &'static str, subject: String, message: String },
    #[error("{operation} {subject}: no answer in {seconds} s")]
    Timeout { operation: &'static str, subject: String, seconds: u64 },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { operation, path, source }
    }
}
