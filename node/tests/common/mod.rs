//! A runtime on a directory of its own, with an image made of Debian's static busybox.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::image::{Image, Registries};
use node::runtime::*;
use sha2::{Digest, Sha256};

/// Whatever is waited for is a matter of milliseconds; this only ends a test that has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Host {
    pub runtime: Runtime,
    pub dir: PathBuf,
    pub name: String,
    pub image: Image,
}

/// Removes what a test leaves when it fails half way.
impl Drop for Host {
    fn drop(&mut self) {
        let (runtime, pods) = (self.runtime.clone(), fs::read_dir(self.dir.join("run/pods")));
        let uids: Vec<String> =
            pods.into_iter().flatten().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
        // A runtime of its own, as the test's may be the one that is unwinding.
        let clean = move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for uid in uids {
                let _ = tokio.block_on(runtime.remove_sandbox(&uid));
            }
            let _ = runtime.remove_rest();
        };
        let _ = std::thread::spawn(clean).join();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn config(dir: &Path, name: &str) -> RuntimeConfig {
    let test = std::env::current_exe().unwrap();
    let shim = test.parent().unwrap().parent().unwrap().join("examples/shim");
    assert!(shim.exists(), "build the example \"shim\" first: cargo build -p node --examples");
    RuntimeConfig {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        node_name: name.to_owned(),
        registries: Registries::default(),
        shim_exe: Some(shim),
    }
}

pub async fn host(test: &str) -> Host {
    let name = format!("test-{test}-{}", std::process::id());
    let dir = std::env::temp_dir().join(&name);
    fs::create_dir_all(&dir).unwrap();
    let runtime = Runtime::open(config(&dir, &name)).unwrap();
    let archive = dir.join("busybox.tar");
    fs::write(&archive, docker_archive("busybox:test", &[&busybox_layer()], "")).unwrap();
    let image = runtime.images().import(&archive).await.unwrap().remove(0);
    Host { runtime, dir, name, image }
}

impl Host {
    pub fn sandbox(&self, uid: &str) -> SandboxSpec {
        SandboxSpec {
            uid: uid.to_owned(),
            name: "pod".into(),
            namespace: "default".into(),
            hostname: "pod-host".into(),
            log_dir: self.dir.join("logs").join(uid),
            ..Default::default()
        }
    }

    pub fn container(&self, uid: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            pod_uid: uid.to_owned(),
            name: "main".into(),
            image: self.image.id.clone(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: self.log(uid),
            ..Default::default()
        }
    }

    pub fn log(&self, uid: &str) -> PathBuf {
        self.dir.join("logs").join(uid).join("0.log")
    }

    /// Creates and starts.
    pub async fn run(&self, spec: &ContainerSpec) -> ContainerId {
        let id = self.runtime.create_container(spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    /// Runs a script to its end and returns how it ended and what it printed.
    pub async fn output(&self, spec: &ContainerSpec) -> (Exit, String) {
        let mut events = self.runtime.events();
        let id = self.run(spec).await;
        let exit = self.exit(&id, &mut events).await;
        let text = self.text(&spec.log_path);
        self.runtime.remove(&id).await.unwrap();
        (exit, text)
    }

    pub async fn exit(&self, id: &ContainerId, events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>) -> Exit {
        let wait = async {
            loop {
                let states = self.runtime.status(&id.pod_uid).await.unwrap();
                if let Some(ContainerState { state: RunState::Exited(exit), .. }) =
                    states.into_iter().find(|c| c.id == *id)
                {
                    return exit;
                }
                events.recv().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("the container has not exited")
    }

    /// The log's lines without their heads.
    pub fn text(&self, log: &Path) -> String {
        let log = fs::read_to_string(log).unwrap();
        log.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    fn pod_dir(&self, uid: &str) -> String {
        self.dir.join("run/pods").join(uid).display().to_string()
    }

    /// Nothing of the pod is left on the machine.
    pub fn assert_gone(&self, uid: &str) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts.lines().filter(|l| l.contains(&*self.pod_dir(uid))).collect();
        assert!(left.is_empty(), "mounts left: {left:#?}");
        assert!(!self.dir.join("run/pods").join(uid).exists());
        assert!(!self.dir.join("data/containers").join(uid).exists());
        let groups = find_cgroups(&self.name);
        for group in groups.iter().flat_map(|g| fs::read_dir(g).into_iter().flatten().flatten()) {
            assert!(!group.file_name().to_string_lossy().contains(uid), "cgroup left: {group:?}");
        }
        // The shim's parent reaps it; until then it may be seen as a zombie, which has no command line.
        let shim = |p: &PathBuf| {
            fs::read(p.join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(&*self.pod_dir(uid)))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
        let left: Vec<PathBuf> = processes.filter(|p| p.join("cmdline").exists()).filter(shim).collect();
        assert!(left.is_empty(), "processes left: {left:?}");
    }
}

pub fn find_cgroups(name: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, name: &str, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy() == name {
                out.push(entry.path());
            }
            walk(&entry.path(), name, out);
        }
    }
    let mut out = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), name, &mut out);
    out
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |s, b| s + &format!("{b:02x}"))
}

/// A root file system that is busybox and what it needs.
pub fn busybox_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, path, data).unwrap();
    };
    for dir in ["bin", "etc", "root"] {
        add(dir, tar::EntryType::Directory, 0o755, b"", "");
    }
    add("tmp", tar::EntryType::Directory, 0o1777, b"", "");
    add("bin/busybox", tar::EntryType::Regular, 0o755, &fs::read("/bin/busybox").unwrap(), "");
    for applet in [
        "sh", "cat", "echo", "sleep", "ls", "id", "grep", "hostname", "ip", "kill", "dd", "true", "false", "mkdir",
        "stty", "head", "ps", "tail", "readlink", "mount", "umount", "env", "touch", "yes", "od", "unshare", "chroot",
        "mknod", "wc", "sed",
    ] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", "busybox");
    }
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/tmp:/bin/sh\n",
        "",
    );
    add("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nweb:x:102:\nlogs:x:200:web\n", "");
    tar.into_inner().unwrap()
}

/// What `docker save` would write of an image with these layers.
pub fn docker_archive(tag: &str, layers: &[&[u8]], user: &str) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["FROM_IMAGE=1"], "User": user},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| digest(l)).collect::<Vec<_>>()},
    })
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        tar.append_data(&mut header, path, data).unwrap();
    };
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    add("config.json", config.as_bytes());
    add("manifest.json", manifest.as_bytes());
    tar.into_inner().unwrap()
}
