//! What registries and archives say about images, as far as it is read.

use serde::Deserialize;

use super::layer::Layer;
use super::{ImageConfig, is_digest};

/// A manifest or an index of manifests.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Manifest {
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    pub manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub os: String,
    pub architecture: String,
}

/// The image's configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigFile {
    architecture: String,
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

/// More layers than this overlayfs will not stack.
const MAX_LAYERS: usize = 400;

/// This machine's architecture, as images call it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        serde_json::from_slice(bytes).map_err(|e| format!("the manifest is malformed: {e}"))
    }

    /// The manifest for this machine, out of an index.
    pub fn platform(&self) -> Result<&Descriptor, String> {
        let fits =
            |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture());
        let found = self.manifests.iter().find(fits).filter(|d| is_digest(&d.digest));
        found.ok_or_else(|| format!("there is no manifest for linux/{}", architecture()))
    }

    /// The configuration's and the layers' descriptors, checked.
    pub fn parts(&self) -> Result<(&Descriptor, &[Descriptor]), String> {
        let config = self.config.as_ref().ok_or("the manifest names no configuration")?;
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("it has more than {MAX_LAYERS} layers"));
        }
        match self.layers.iter().chain([config]).find(|d| !is_digest(&d.digest)) {
            Some(bad) => Err(format!("\"{}\" is no sha256 digest", bad.digest)),
            None => Ok((config, &self.layers)),
        }
    }
}

impl ConfigFile {
    pub fn parse(bytes: &[u8]) -> Result<ConfigFile, String> {
        let file: ConfigFile =
            serde_json::from_slice(bytes).map_err(|e| format!("the image's configuration is malformed: {e}"))?;
        if !file.architecture.is_empty() && file.architecture != architecture() {
            return Err(format!("it is for {}, this machine is {}", file.architecture, architecture()));
        }
        Ok(file)
    }

    /// Layers with the digests they must unpack to.
    pub fn layers(&self, descriptors: &[Descriptor]) -> Result<Vec<Layer>, String> {
        let ids = &self.rootfs.diff_ids;
        if ids.len() != descriptors.len() {
            return Err(format!("its manifest has {} layers and its configuration {}", descriptors.len(), ids.len()));
        }
        let layer = |(d, id): (&Descriptor, &String)| Layer {
            digest: d.digest.clone(),
            size: d.size,
            diff_id: Some(id.clone()),
        };
        Ok(descriptors.iter().zip(ids).map(layer).collect())
    }

    pub fn config(self) -> ImageConfig {
        let config = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            stop_signal: config.stop_signal.unwrap_or_default(),
        }
    }
}
