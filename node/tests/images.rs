//! Pulling from a real registry (Debian's docker-registry) and importing, down to running what came. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::{DEADLINE, busybox_layer, config, digest, docker_archive};
use node::image::*;
use node::runtime::*;
use serde_json::json;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    host: String,
    http: reqwest::Client,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    async fn start() -> Registry {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        // A port that is free now; should somebody take it meanwhile, the registry does not come up and the test says so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = dir.path().join("store");
        let file = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            root.display()
        );
        fs::write(&file, text).unwrap();
        let child =
            Command::new("docker-registry").arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("the Debian package docker-registry");
        let registry = Registry { child, dir, host: format!("127.0.0.1:{port}"), http: reqwest::Client::new() };
        let end = Instant::now() + DEADLINE;
        while registry.http.get(registry.url("")).send().await.is_err() {
            assert!(Instant::now() < end, "the registry does not come up");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        registry
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host)
    }

    /// As a mirror of docker.io, behind one that does not answer.
    fn registries(&self) -> Registries {
        Registries::parse(&format!(
            "mirrors: {{docker.io: {{endpoint: ['http://127.0.0.1:1', 'http://{}']}}}}",
            self.host
        ))
        .unwrap()
    }

    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let name = digest(bytes);
        let answer = self.http.post(self.url(&format!("{repository}/blobs/uploads/"))).send().await.unwrap();
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let answer =
            self.http.put(format!("{location}{separator}digest={name}")).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        name
    }

    async fn push_manifest(&self, repository: &str, tag: &str, kind: &str, manifest: &serde_json::Value) -> String {
        let body = manifest.to_string();
        let url = self.url(&format!("{repository}/manifests/{tag}"));
        let answer = self.http.put(url).header("content-type", kind).body(body.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        digest(body.as_bytes())
    }

    /// An image of these layers, given as (uncompressed, as stored).
    async fn push(&self, repository: &str, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> (String, u64) {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let ids: Vec<String> = layers.iter().map(|(plain, _)| digest(plain)).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"], "User": "web"},
            "rootfs": {"type": "layers", "diff_ids": ids}})
        .to_string();
        let id = self.push_blob(repository, config.as_bytes()).await;
        let mut descriptors = Vec::new();
        for (_, stored) in layers {
            let name = self.push_blob(repository, stored).await;
            descriptors.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": name, "size": stored.len()}));
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()}, "layers": descriptors});
        let name = self.push_manifest(repository, tag, MANIFEST, &manifest).await;
        (name, manifest.to_string().len() as u64)
    }

    fn blob_file(&self, name: &str) -> PathBuf {
        let hex = name.strip_prefix("sha256:").unwrap();
        self.dir.path().join("store/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

fn small_layer(path: &str, text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn store(dir: &Path, registries: Registries) -> ImageStore {
    ImageStore::open(dir, registries).unwrap()
}

fn layers_in(dir: &Path) -> usize {
    fs::read_dir(dir.join("images/layers")).unwrap().count()
}

fn assert_no_scraps(dir: &Path) {
    let scraps: Vec<_> = fs::read_dir(dir.join("images/tmp")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(scraps.is_empty(), "{scraps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_through_a_mirror_and_runs() {
    let registry = Registry::start().await;
    let (base, top) = (busybox_layer(), small_layer("etc/message", "from the top layer"));
    let (manifest, length) =
        registry.push("library/web", "v1", &[(base.clone(), gzip(&base)), (top.clone(), zstd(&top))]).await;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let other = json!({"mediaType": MANIFEST, "digest": manifest, "size": length, "platform": {"os": "linux", "architecture": "mips"}});
    let ours = json!({"mediaType": MANIFEST, "digest": manifest, "size": length, "platform": {"os": "linux", "architecture": architecture}});
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours]});
    let index = registry.push_manifest("library/web", "latest", INDEX, &list).await;
    let dir = tempfile::tempdir().unwrap();
    let name = format!("test-pull-{}", std::process::id());
    let runtime =
        Runtime::open(RuntimeConfig { registries: registry.registries(), ..config(dir.path(), &name) }).unwrap();
    // Many ask at once; it is pulled once.
    let pulls = (0..10).map(|_| {
        let images = runtime.images().clone();
        tokio::spawn(async move { images.pull("web", None, PullPolicy::IfNotPresent).await })
    });
    let mut images = BTreeSet::new();
    for pull in pulls.collect::<Vec<_>>() {
        images.insert(pull.await.unwrap().unwrap().id);
    }
    assert_eq!(images.len(), 1);
    let image = runtime.images().get("docker.io/library/web:latest").unwrap();
    assert_eq!((image.digest.as_str(), image.layers.len()), (index.as_str(), 2));
    assert_eq!(image.repo_digest(), format!("docker.io/library/web@{index}"));
    assert_eq!(runtime.images().get(&format!("web@{index}")).unwrap().id, image.id);
    assert_no_scraps(&dir.path().join("data"));
    let by_digest = runtime.images().pull(&format!("web@{manifest}"), None, PullPolicy::Always).await.unwrap();
    assert_eq!(by_digest.id, image.id);
    // And what was pulled runs, as the user the image names.
    let uid = "pulled";
    let sandbox =
        SandboxSpec { uid: uid.into(), hostname: "h".into(), log_dir: dir.path().join("logs"), ..Default::default() };
    runtime.create_sandbox(&sandbox).await.unwrap();
    let log_path = dir.path().join("logs/0.log");
    let command = ["/bin/sh", "-c", "cat /etc/message; id -u"].map(str::to_owned).to_vec();
    let spec = ContainerSpec {
        pod_uid: uid.into(),
        name: "c".into(),
        image: image.id.clone(),
        command,
        log_path: log_path.clone(),
        ..Default::default()
    };
    let mut events = runtime.events();
    let id = runtime.create_container(&spec).await.unwrap();
    runtime.start(&id).await.unwrap();
    tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    let log = fs::read_to_string(&log_path).unwrap();
    assert!(log.contains("from the top layer101"), "{log}");
    // What is used stays, whatever is collected.
    runtime.images().remove("web").unwrap();
    runtime.collect_images(Collect::Unused).unwrap();
    assert_eq!(layers_in(&dir.path().join("data")), 2);
    runtime.remove_sandbox(uid).await.unwrap();
    let collected = runtime.collect_images(Collect::Unused).unwrap();
    assert!(!collected.images.is_empty() && collected.bytes > 0, "{collected:?}");
    assert_eq!(layers_in(&dir.path().join("data")), 0);
    runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_says_why_and_keeps_nothing() {
    let registry = Registry::start().await;
    let plain = small_layer("a", &"something to compress ".repeat(200));
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path(), registry.registries());
    let own = |name: &str| format!("{}/{name}", registry.host);
    let plain_http =
        Registries::parse(&format!("mirrors: {{'{0}': {{endpoint: ['http://{0}']}}}}", registry.host)).unwrap();
    let direct_dir = tempfile::tempdir().unwrap();
    let direct = store(direct_dir.path(), plain_http);

    assert_eq!(images.pull("web", None, PullPolicy::Never).await, Err(ImageError::NeverPull("web".into())));
    assert!(matches!(images.pull("WEB", None, PullPolicy::Always).await, Err(ImageError::InvalidName { .. })));
    let missing = direct.pull(&own("no/such:v1"), None, PullPolicy::IfNotPresent).await.unwrap_err().to_string();
    assert!(missing.contains("not found") && missing.contains("no/such:v1"), "{missing}");

    // One byte of a layer is another than the manifest says.
    registry.push("web", "v1", &[(plain.clone(), gzip(&plain))]).await;
    let layer = digest(&gzip(&plain));
    let file = registry.blob_file(&layer);
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&file, &bad).unwrap();
    let error = direct.pull(&own("web:v1"), None, PullPolicy::IfNotPresent).await.unwrap_err();
    let want =
        ImageError::Corrupt { image: own("web:v1"), blob: layer.clone(), expected: layer.clone(), got: digest(&bad) };
    assert_eq!(error, want);
    // It is shorter than it says.
    fs::write(&file, &good[..middle]).unwrap();
    let error = direct.pull(&own("web:v1"), None, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(error.to_string().contains(&layer), "{error}");
    assert_eq!(layers_in(direct_dir.path()), 0);
    assert_no_scraps(direct_dir.path());
    assert!(direct.list().unwrap().is_empty());
    // Mended, it comes, by the same store.
    fs::write(&file, &good).unwrap();
    assert_eq!(direct.pull(&own("web:v1"), None, PullPolicy::IfNotPresent).await.unwrap().layers, [layer]);

    // The compressed bytes are right, what they unpack to is not what the configuration says.
    let lie = small_layer("a", "another text");
    registry.push("lie", "v1", &[(plain.clone(), gzip(&lie))]).await;
    let error = direct.pull(&own("lie:v1"), None, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    // No archive at all.
    let noise = vec![b'x'; 5000];
    registry.push("noise", "v1", &[(noise.clone(), noise)]).await;
    let error = direct.pull(&own("noise:v1"), None, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error}");
    assert_eq!(layers_in(direct_dir.path()), 1);
    assert_no_scraps(direct_dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_is_followed_when_asked() {
    let registry = Registry::start().await;
    let (old, new) = (small_layer("v", "1"), small_layer("v", "2"));
    registry.push("library/app", "latest", &[(old.clone(), gzip(&old))]).await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path(), registry.registries());
    let first = images.pull("app", None, PullPolicy::Always).await.unwrap();
    registry.push("library/app", "latest", &[(new.clone(), gzip(&new))]).await;
    assert_eq!(images.pull("app", None, PullPolicy::IfNotPresent).await.unwrap().id, first.id);
    let second = images.pull("app", None, PullPolicy::Always).await.unwrap();
    assert_ne!(second.id, first.id);
    // The old one has lost its name, and stays for who uses it.
    assert_eq!(images.get(&first.id).unwrap().reference, "");
    images.gc(&BTreeSet::from([first.id.clone()]), Collect::Unreferenced).unwrap();
    assert_eq!(layers_in(dir.path()), 2);
    let collected = images.gc(&BTreeSet::new(), Collect::Unreferenced).unwrap();
    assert_eq!(collected.images, [first.id]);
    assert_eq!(layers_in(dir.path()), 1);
    // A layer that somebody has removed is fetched again.
    let layer = fs::read_dir(dir.path().join("images/layers")).unwrap().next().unwrap().unwrap().path();
    fs::remove_dir_all(&layer).unwrap();
    assert_eq!(images.pull("app", None, PullPolicy::IfNotPresent).await.unwrap().id, second.id);
    assert!(layer.join("v").exists());
    // What another process did to the directory is seen.
    let other = store(dir.path(), Registries::default());
    assert!(other.remove("app").unwrap() && !other.remove("app").unwrap());
    assert!(images.get("app").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_both_kinds_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path(), Registries::default());
    let layer = small_layer("a", "b");
    let file = dir.path().join("saved.tar");
    fs::write(&file, docker_archive("tool:v1", &[&layer], "web")).unwrap();
    let saved = images.import(&file).await.unwrap();
    assert_eq!((saved[0].reference.as_str(), saved[0].config.user.as_str()), ("docker.io/library/tool:v1", "web"));

    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}}).to_string();
    let stored = gzip(&layer);
    let manifest = json!({"schemaVersion": 2, "config": {"digest": digest(config.as_bytes()), "size": config.len()},
        "layers": [{"digest": digest(&stored), "size": stored.len()}]})
    .to_string();
    let index =
        json!({"schemaVersion": 2, "manifests": [{"digest": digest(manifest.as_bytes()), "size": manifest.len(),
        "annotations": {"io.containerd.image.name": "quay.io/team/tool:v2"}}]})
        .to_string();
    let archive = |layer: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            tar.append_data(&mut header, path, data).unwrap();
        };
        add("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
        add("index.json", index.as_bytes());
        for blob in [config.as_bytes(), manifest.as_bytes()] {
            add(&format!("blobs/{}", digest(blob).replace(':', "/")), blob);
        }
        add(&format!("blobs/{}", digest(&stored).replace(':', "/")), layer);
        tar.into_inner().unwrap()
    };
    let file = dir.path().join("layout.tar");
    fs::write(&file, archive(b"not the layer")).unwrap();
    assert!(matches!(images.import(&file).await, Err(ImageError::Corrupt { .. })));
    fs::write(&file, archive(&stored)).unwrap();
    let laid_out = images.import(&file).await.unwrap();
    assert_eq!(laid_out[0].reference, "quay.io/team/tool:v2");
    assert_eq!(laid_out[0].digest, digest(manifest.as_bytes()));
    assert_eq!(images.list().unwrap().len(), 2);
    fs::write(&file, "nothing of the kind").unwrap();
    assert!(images.import(&file).await.is_err());
    assert!(images.import(Path::new("/no/such/file")).await.unwrap_err().to_string().contains("/no/such/file"));
    assert_no_scraps(dir.path());
}
