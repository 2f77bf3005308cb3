//! A registry, and images made on the spot from Debian packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
};

use anyhow::{Context, Result};

use crate::{
    host::{Host, sh},
    wait::{seconds, wait},
};

/// A registry on a host of its own. It ends when dropped.
pub struct Registry {
    child: Child,
    host: Host,
}

impl Registry {
    pub fn start(host: Host, dir: &Path) -> Result<Registry> {
        let config = dir.join("registry.yml");
        let store = dir.join("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '0.0.0.0:5000'}}\n",
                store.display()
            ),
        )?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = host
            .command("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Registry { child, host };
        wait("registry", seconds(20), || registry.host.curl("http://127.0.0.1:5000/v2/").map(Some))?;
        Ok(registry)
    }

    /// Its address as a mirror.
    pub fn url(&self) -> String {
        format!("http://{}:5000", self.host.address)
    }

    /// Pushes one of [`layout`]'s images under a repository name and tag.
    pub fn push(&self, layout: &Path, image: &str, reference: &str) -> Result<()> {
        let line = format!(
            "skopeo --insecure-policy copy -q --dest-tls-verify=false oci:{}:{image} docker://127.0.0.1:5000/{reference}",
            layout.display()
        );
        self.host.sh(&line).map(drop)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout with the images `busybox`, `demo` (port 3000), `nginx` (tells who answered whom) and `nginx2` (in other
/// words).
pub fn layout(dir: &Path) -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/images.sh");
    sh(&format!("{script} {}", dir.display())).context("make images")?;
    Ok(dir.join("oci"))
}
