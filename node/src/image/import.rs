//! Images from a tar file: what `docker save` writes, and the OCI layout.

use std::fs;
use std::io;
use std::path::Path;

use nix::fcntl::OFlag;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::beneath::Root;
use super::layer::{Layer, corrupt};
use super::manifest::{ConfigFile, Descriptor, Manifest};
use super::store::remove_tree;
use super::{Image, ImageError, ImageStore, Reference, hex, unpack};

/// Documents in an archive are kilobytes.
const MAX_DOCUMENT: u64 = 4 << 20;
/// An index of indexes of indexes is a puzzle, not an image.
const MAX_DEPTH: u32 = 3;
/// Where an OCI layout says an image's name, the fuller one first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn import(store: &ImageStore, path: &Path) -> Result<Vec<Image>, ImageError> {
    let _collecting = store.hold_off_collection()?;
    let file = fs::File::open(path).map_err(ImageError::io("open", path))?;
    let size = file.metadata().map_err(ImageError::io("read", path))?.len();
    let tmp = store.tmp_path("import");
    fs::create_dir(&tmp).map_err(ImageError::io("create directory", &tmp))?;
    let name = path.display().to_string();
    let result = unpack::unpack(file, size, &tmp).map_err(|m| failed(&name, m)).and_then(|_| {
        let root = Root::open(&tmp).map_err(ImageError::io("open", &tmp))?;
        Import { store, root, name: &name }.all()
    });
    remove_tree(&tmp);
    result
}

struct Import<'a> {
    store: &'a ImageStore,
    root: Root,
    name: &'a str,
}

impl Import<'_> {
    fn all(&self) -> Result<Vec<Image>, ImageError> {
        let images = if let Some(bytes) = self.root.read("manifest.json", MAX_DOCUMENT) {
            let saved: Vec<Saved> = serde_json::from_slice(&bytes).map_err(|e| failed(self.name, e.to_string()))?;
            saved.iter().map(|s| self.saved(s)).collect::<Result<Vec<_>, _>>()?.concat()
        } else if let Some(bytes) = self.root.read("index.json", MAX_DOCUMENT) {
            let index = Manifest::parse(&bytes).map_err(|m| failed(self.name, m))?;
            let each = index.manifests.iter().map(|d| self.described(d, 0));
            each.collect::<Result<Vec<_>, _>>()?.concat()
        } else {
            return Err(failed(self.name, "it has neither manifest.json nor index.json".to_owned()));
        };
        for image in &images {
            self.store.record(image.clone())?;
        }
        Ok(images)
    }

    /// An image as `docker save` describes it.
    fn saved(&self, saved: &Saved) -> Result<Vec<Image>, ImageError> {
        let config_bytes = self.document(&saved.config)?;
        let file = ConfigFile::parse(&config_bytes).map_err(|m| failed(self.name, m))?;
        let mut descriptors = Vec::new();
        for layer in &saved.layers {
            let (digest, size) = self.measure(layer)?;
            descriptors.push(Descriptor { digest, size, ..Default::default() });
        }
        let layers = file.layers(&descriptors).map_err(|m| failed(self.name, m))?;
        for (layer, path) in layers.iter().zip(&saved.layers) {
            self.install(layer, path)?;
        }
        let id = bytes_digest(&config_bytes);
        self.store.write_blob(&id, &config_bytes)?;
        let names = saved.repo_tags.clone().unwrap_or_default();
        self.named(names, id.clone(), id, file, layers)
    }

    /// An image an OCI index describes, or those of an index it describes.
    fn described(&self, descriptor: &Descriptor, depth: u32) -> Result<Vec<Image>, ImageError> {
        if depth > MAX_DEPTH {
            return Err(failed(self.name, "its indexes are nested too deeply".to_owned()));
        }
        let bytes = self.blob(descriptor)?;
        let manifest = Manifest::parse(&bytes).map_err(|m| failed(self.name, m))?;
        if manifest.config.is_none() {
            let mut chosen = manifest.platform().map_err(|m| failed(self.name, m))?.clone();
            chosen.annotations.extend(descriptor.annotations.clone());
            return self.described(&chosen, depth + 1);
        }
        let (config, descriptors) = manifest.parts().map_err(|m| failed(self.name, m))?;
        let config_bytes = self.blob(config)?;
        let file = ConfigFile::parse(&config_bytes).map_err(|m| failed(self.name, m))?;
        let layers = file.layers(descriptors).map_err(|m| failed(self.name, m))?;
        for layer in &layers {
            let path = blob_path(&layer.digest);
            let (got, _) = self.measure(&path)?;
            if got != layer.digest {
                return Err(corrupt(self.name, &layer.digest, &layer.digest, &got));
            }
            self.install(layer, &path)?;
        }
        self.store.write_blob(&config.digest, &config_bytes)?;
        self.store.write_blob(&descriptor.digest, &bytes)?;
        let name = NAME_ANNOTATIONS.iter().find_map(|a| descriptor.annotations.get(*a)).cloned();
        self.named(name.into_iter().collect(), config.digest.clone(), descriptor.digest.clone(), file, layers)
    }

    fn named(
        &self,
        names: Vec<String>,
        id: String,
        digest: String,
        file: ConfigFile,
        layers: Vec<Layer>,
    ) -> Result<Vec<Image>, ImageError> {
        let image = Image {
            id,
            digest,
            reference: String::new(),
            config: file.config(),
            size: layers.iter().map(|l| l.size).sum(),
            layers: layers.into_iter().map(|l| l.digest).collect(),
        };
        if names.is_empty() {
            return Ok(vec![image]);
        }
        let name = |n: String| Ok(Image { reference: Reference::parse(&n)?.to_string(), ..image.clone() });
        names.into_iter().map(name).collect()
    }

    fn install(&self, layer: &Layer, path: &str) -> Result<(), ImageError> {
        let fd = self.open(path)?;
        let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        self.store.install(self.name, layer, Path::new(&through))
    }

    fn open(&self, path: &str) -> Result<std::os::fd::OwnedFd, ImageError> {
        let fd = self.root.open_at(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        fd.map_err(|e| failed(self.name, format!("{path}: {}", e.desc())))
    }

    fn measure(&self, path: &str) -> Result<(String, u64), ImageError> {
        let mut file = fs::File::from(self.open(path)?);
        let mut hash = Sha256::new();
        let size = io::copy(&mut file, &mut hash).map_err(|e| failed(self.name, format!("{path}: {e}")))?;
        Ok((format!("sha256:{}", hex(&hash.finalize())), size))
    }

    fn document(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        self.root.read(path, MAX_DOCUMENT).ok_or_else(|| failed(self.name, format!("{path} is missing")))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&blob_path(&descriptor.digest))?;
        let got = bytes_digest(&bytes);
        if got != descriptor.digest {
            return Err(corrupt(self.name, &descriptor.digest, &descriptor.digest, &got));
        }
        Ok(bytes)
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn bytes_digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn failed(name: &str, message: String) -> ImageError {
    ImageError::Store { operation: "import", path: name.to_owned(), message }
}
