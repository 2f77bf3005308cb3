//! Pulling from registries: mirrors in order, digests checked before anything is used.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::layer::{Layer, corrupt};
use super::manifest::{ConfigFile, Descriptor, Manifest};
use super::store::{remove_tree, run_blocking};
use super::{Auth, Endpoint, Image, ImageError, ImageStore, Reference, hex};

/// Layers of one image fetched at once: a registry on the same wire is not faster with more, and each
/// unpacks on a thread of its own.
const CONCURRENT_LAYERS: usize = 3;
/// Manifests and configurations are kilobytes; what is longer is an attack.
const MAX_DOCUMENT: u64 = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer, not for the whole of it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

type SharedPull = Shared<BoxFuture<'static, Result<Image, ImageError>>>;

/// Pulls under way. One with other credentials is another pull: nobody gets an image by somebody else's right.
#[derive(Default)]
pub(super) struct Pulls {
    running: Mutex<HashMap<(String, Option<Auth>), SharedPull>>,
}

/// Joins the pull of this image that is under way, or starts it. It goes on when who asked for it goes away.
pub(super) async fn coalesced(
    store: ImageStore,
    reference: Reference,
    auth: Option<Auth>,
) -> Result<Image, ImageError> {
    let key = (reference.to_string(), auth.clone());
    let shared = {
        let mut running = store.inner.pulls.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.get(&key) {
            Some(shared) => shared.clone(),
            None => {
                let shared = start(store.clone(), reference, auth, key.clone());
                running.insert(key, shared.clone());
                shared
            }
        }
    };
    shared.await
}

fn start(store: ImageStore, reference: Reference, auth: Option<Auth>, key: (String, Option<Auth>)) -> SharedPull {
    let task = tokio::spawn(async move {
        let result = pull(&store, &reference, auth.as_ref()).await;
        store.inner.pulls.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        result
    });
    let wait = async move {
        task.await.unwrap_or_else(|e| {
            Err(ImageError::Store { operation: "run", path: "pull".to_owned(), message: e.to_string() })
        })
    };
    wait.boxed().shared()
}

async fn pull(store: &ImageStore, reference: &Reference, auth: Option<&Auth>) -> Result<Image, ImageError> {
    let _collecting = store.hold_off_collection()?;
    let endpoints = store.inner.registries.endpoints(reference);
    let own = reference.registry_host();
    let mut failures = Vec::new();
    let mut worst = None;
    for endpoint in &endpoints {
        // A pull secret is for the registry it names, not for whatever stands in for it.
        let secret = auth.filter(|_| endpoint.host == own);
        let auth = secret.or(endpoint.auth.as_ref());
        let source = Source::new(reference, endpoint, auth)?;
        match source.image(store).await {
            Ok(image) => return Ok(image),
            // That something is corrupt matters more than that the next place could not be reached.
            Err(e @ (ImageError::Corrupt { .. } | ImageError::Unpack { .. })) => worst = Some(e),
            Err(ImageError::Pull { message, .. }) => failures.push(format!("{}: {message}", endpoint.host)),
            Err(other) => return Err(other),
        }
    }
    Err(worst.unwrap_or_else(|| ImageError::Pull { image: reference.to_string(), message: failures.join("; ") }))
}

/// One endpoint, ready to be asked for one image.
struct Source {
    client: Client,
    name: String,
    image: oci_client::Reference,
    wanted: Option<String>,
    auth: RegistryAuth,
}

impl Source {
    fn new(reference: &Reference, endpoint: &Endpoint, auth: Option<&Auth>) -> Result<Source, ImageError> {
        let read = |path: &Path| fs::read(path).map_err(ImageError::io("read", path));
        let mut config = ClientConfig {
            protocol: if endpoint.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            accept_invalid_certificates: endpoint.tls.insecure_skip_verify,
            user_agent: concat!("minik8s/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        };
        if endpoint.tls.cert_file.is_some() || endpoint.tls.key_file.is_some() {
            tracing::warn!(registry = %endpoint.host, "client certificates for registries are not supported; it is asked without");
        }
        if let Some(ca) = &endpoint.tls.ca_file {
            config.extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data: read(ca)? });
        }
        let (host, repository) = (endpoint.host.clone(), endpoint.repository.clone());
        let image = match &reference.digest {
            Some(digest) => oci_client::Reference::with_digest(host, repository, digest.clone()),
            None => oci_client::Reference::with_tag(host, repository, reference.selector().to_owned()),
        };
        let auth = match auth {
            None => RegistryAuth::Anonymous,
            Some(Auth::Basic { username, password }) => RegistryAuth::Basic(username.clone(), password.clone()),
            Some(Auth::Bearer(token)) => RegistryAuth::Bearer(token.clone()),
        };
        Ok(Source {
            client: Client::new(config),
            name: reference.to_string(),
            image,
            wanted: reference.digest.clone(),
            auth,
        })
    }

    async fn image(&self, store: &ImageStore) -> Result<Image, ImageError> {
        let (bytes, digest) = self.manifest(&self.image, self.wanted.as_deref()).await?;
        let mut manifest = Manifest::parse(&bytes).map_err(|m| self.failed(m))?;
        // The image is known by the digest it was asked for with, which for several platforms is the index's.
        store.write_blob(&digest, &bytes)?;
        if manifest.config.is_none() {
            let chosen = manifest.platform().map_err(|m| self.failed(m))?.digest.clone();
            let at = self.image.clone_with_digest(chosen.clone());
            let (bytes, _) = self.manifest(&at, Some(&chosen)).await?;
            manifest = Manifest::parse(&bytes).map_err(|m| self.failed(m))?;
            store.write_blob(&chosen, &bytes)?;
        }
        let (config, descriptors) = manifest.parts().map_err(|m| self.failed(m))?;
        let config_bytes = self.document(config).await?;
        let file = ConfigFile::parse(&config_bytes).map_err(|m| self.failed(m))?;
        let layers = file.layers(descriptors).map_err(|m| self.failed(m))?;
        let fetches = layers.clone().into_iter().map(|layer| async move { self.layer(store, &layer).await });
        stream::iter(fetches).buffer_unordered(CONCURRENT_LAYERS).try_collect::<Vec<()>>().await?;
        store.write_blob(&config.digest, &config_bytes)?;
        let image = Image {
            id: config.digest.clone(),
            digest,
            reference: self.name.clone(),
            config: file.config(),
            size: layers.iter().map(|l| l.size).sum(),
            layers: layers.into_iter().map(|l| l.digest).collect(),
        };
        store.record(image.clone())?;
        Ok(image)
    }

    async fn manifest(
        &self,
        at: &oci_client::Reference,
        wanted: Option<&str>,
    ) -> Result<(Vec<u8>, String), ImageError> {
        let answer = self.client.pull_manifest_raw(at, &self.auth, &MEDIA_TYPES).await;
        let (bytes, _) = answer.map_err(|e| self.failed(explain(&e)))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(self.failed(format!("its manifest is {} bytes long", bytes.len())));
        }
        // Computed here rather than believed.
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        match wanted {
            Some(wanted) if wanted != digest => Err(corrupt(&self.name, "manifest", wanted, &digest)),
            _ => Ok((bytes.to_vec(), digest)),
        }
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if descriptor.size > MAX_DOCUMENT {
            return Err(self.failed(format!("its configuration is {} bytes long", descriptor.size)));
        }
        let mut bytes = Vec::new();
        let got = self.stream(&descriptor.digest, descriptor.size, &mut bytes).await?;
        if got != descriptor.digest {
            return Err(corrupt(&self.name, &descriptor.digest, &descriptor.digest, &got));
        }
        Ok(bytes)
    }

    /// Fetches, checks and unpacks a layer, unless it is there.
    async fn layer(&self, store: &ImageStore, layer: &Layer) -> Result<(), ImageError> {
        let lock = store.layer_lock(&layer.digest);
        let _held = lock.lock().await;
        if store.layer_dir(&layer.digest).exists() {
            return Ok(());
        }
        let path = store.tmp_path("blob");
        let result = self.fetch(store, layer, &path).await;
        remove_tree(&path);
        result
    }

    async fn fetch(&self, store: &ImageStore, layer: &Layer, path: &Path) -> Result<(), ImageError> {
        let mut file = tokio::fs::File::create(path).await.map_err(ImageError::io("create", path))?;
        let got = self.stream(&layer.digest, layer.size, &mut file).await?;
        if got != layer.digest {
            return Err(corrupt(&self.name, &layer.digest, &layer.digest, &got));
        }
        file.flush().await.map_err(ImageError::io("write", path))?;
        let (store, name, layer, path) = (store.clone(), self.name.clone(), layer.clone(), path.to_owned());
        run_blocking(move || store.install(&name, &layer, &path)).await
    }

    /// Copies a blob of a known size, and returns the digest of what came.
    async fn stream(
        &self,
        digest: &str,
        size: u64,
        to: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> Result<String, ImageError> {
        let mut blob = self.client.pull_blob_stream(&self.image, digest).await.map_err(|e| self.failed(explain(&e)))?;
        let (mut hash, mut received) = (Sha256::new(), 0u64);
        while let Some(chunk) = blob.stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                // The library compares digests too, and says so by failing at the end.
                Err(_) if received == size => break,
                Err(e) => {
                    return Err(
                        self.failed(format!("download of {digest} stopped after {received} of {size} bytes: {e}"))
                    );
                }
            };
            received += chunk.len() as u64;
            if received > size {
                return Err(corrupt(&self.name, digest, &format!("{size} bytes"), "more"));
            }
            hash.update(&chunk);
            to.write_all(&chunk).await.map_err(ImageError::io("write", digest))?;
        }
        if received < size {
            return Err(corrupt(&self.name, digest, &format!("{size} bytes"), &received.to_string()));
        }
        Ok(format!("sha256:{}", hex(&hash.finalize())))
    }

    fn failed(&self, message: String) -> ImageError {
        ImageError::Pull { image: self.name.clone(), message }
    }
}

/// In words a user can act on.
fn explain(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => "not found".to_owned(),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            "pull access denied: it does not exist or may require credentials".to_owned()
        }
        OciDistributionError::ServerError { code: 404, .. } => "not found".to_owned(),
        OciDistributionError::RegistryError { envelope, .. } => {
            let not_found = envelope.errors.iter().any(|e| {
                use oci_client::errors::OciErrorCode::{ManifestUnknown, NameUnknown, NotFound};
                matches!(e.code, ManifestUnknown | NameUnknown | NotFound)
            });
            if not_found { "not found".to_owned() } else { error.to_string() }
        }
        _ => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            text
        }
    }
}
