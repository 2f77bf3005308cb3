//! A registry, and images made on the spot from Debian packages.

use std::{fs, path::Path, process::Child};

use anyhow::{Context, Result};

use crate::{
    host::{Host, sh},
    wait::{seconds, wait},
};

/// What nginx answers tells who answered and whom it saw.
const NGINX_CONF: &str = "daemon off; error_log /dev/stderr; pid /tmp/nginx.pid; events {}
http { access_log /dev/stdout; server { listen 80; location / { default_type text/plain; return 200 \"$hostname saw $remote_addr\\n\"; } } }
";

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

/// An OCI layout with the images `busybox`, `nginx`, `nginx2` (which answers from another page) and `demo`.
pub fn layout(dir: &Path) -> Result<std::path::PathBuf> {
    let layout = dir.join("oci");
    let root = dir.join("rootfs");
    let stage = format!(
        "set -e
         mkdir -p {root}/bin {root}/etc {root}/tmp {root}/usr/sbin {root}/www {root}/var/log/nginx {root}/var/lib/nginx
         chmod 1777 {root}/tmp
         cp $(command -v busybox) {root}/bin/busybox
         for t in $({root}/bin/busybox --list); do [ -e {root}/bin/$t ] || ln -s busybox {root}/bin/$t; done
         printf 'root:x:0:0:root:/root:/bin/sh\\nnobody:x:65534:65534:nobody:/:/bin/false\\n' >{root}/etc/passwd
         printf 'root:x:0:\\nnogroup:x:65534:\\n' >{root}/etc/group
         echo 'hello from the demo' >{root}/www/index.html
         umoci init --layout {layout}
         umoci new --image {layout}:busybox
         umoci insert --image {layout}:busybox {root} /
         umoci config --image {layout}:busybox --config.cmd sh --config.env PATH=/bin:/usr/bin:/usr/sbin
         umoci tag --image {layout}:busybox demo
         umoci config --image {layout}:demo --config.cmd httpd --config.cmd=-f --config.cmd=-p --config.cmd=3000 --config.cmd=-h --config.cmd=/www
         mkdir -p {root}2/usr/sbin {root}2/usr/bin {root}2/etc/nginx
         for f in /usr/sbin/nginx /usr/bin/curl; do
           cp $f {root}2$f
           ldd $f | grep -o '/[^ ]*' | while read l; do mkdir -p {root}2$(dirname $l); cp -Ln $l {root}2$l; done
         done
         cp {conf} {root}2/etc/nginx/nginx.conf
         umoci tag --image {layout}:busybox nginx
         umoci insert --image {layout}:nginx {root}2 /
         umoci config --image {layout}:nginx --clear=config.cmd --config.cmd=nginx
         sed -i 's/saw/version-two-saw/' {root}2/etc/nginx/nginx.conf
         umoci tag --image {layout}:nginx nginx2
         umoci insert --image {layout}:nginx2 {root}2/etc/nginx /etc/nginx
         ",
        root = root.display(),
        layout = layout.display(),
        conf = dir.join("nginx.conf").display(),
    );
    fs::write(dir.join("nginx.conf"), NGINX_CONF)?;
    sh(&stage).context("make images")?;
    Ok(layout)
}
