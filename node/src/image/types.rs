//! The image store's values and errors.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The part of an image's configuration a container needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    pub stop_signal: String,
}

/// An image whose layers are all unpacked on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The configuration's digest, `sha256:..`: what a pod status calls the image id.
    pub id: String,
    /// The manifest's digest, `sha256:..`.
    pub digest: String,
    /// The normalized name, `docker.io/library/nginx:latest`; empty once its tag has moved to another image.
    pub reference: String,
    pub config: ImageConfig,
    /// Digests of the layers, lowest first.
    pub layers: Vec<String>,
    /// Compressed bytes.
    pub size: u64,
}

impl Image {
    /// What a container status shows as `imageID`: `docker.io/library/nginx@sha256:..`.
    pub fn repo_digest(&self) -> String {
        match super::Reference::parse(&self.reference) {
            Ok(r) => format!("{}/{}@{}", r.registry, r.repository, self.digest),
            Err(_) => self.id.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// Credentials for one registry, from a pull secret or the registries file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    Basic { username: String, password: String },
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Basic { .. } => "Basic(..)",
            Auth::Bearer(_) => "Bearer(..)",
        })
    }
}

/// Why there is no image. It is `Clone`: all who wait for one pull get the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The kubelet's `InvalidImageName`.
    #[error("invalid image name \"{name}\": {message}")]
    InvalidName { name: String, message: String },
    /// The kubelet's `ErrImageNeverPull`.
    #[error("image \"{0}\" is not on this node and its pull policy is Never")]
    NeverPull(String),
    /// No registry asked has it, or will show it without other credentials.
    #[error("pull image \"{image}\": {message}")]
    Pull { image: String, message: String },
    /// A download that is not what the manifest names; nothing of it is kept.
    #[error("image \"{image}\": layer {blob} is corrupt: expected {expected}, got {got}")]
    Corrupt { image: String, blob: String, expected: String, got: String },
    /// A layer that cannot be unpacked, or must not be.
    #[error("image \"{image}\": unpack layer {layer}: {message}")]
    Unpack { image: String, layer: String, message: String },
    #[error("{operation} {path}: {message}")]
    Store { operation: &'static str, path: String, message: String },
}

impl ImageError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<std::path::Path>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        move |e| ImageError::Store { operation, path, message: e.to_string() }
    }
}

/// What `gc` may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Blobs and layers no image names, and images whose tag has moved on.
    Unreferenced,
    /// Also every image no container uses.
    Unused,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: Vec<String>,
    /// Bytes given back to the disk.
    pub bytes: u64,
}
