//! Volumes of a pod on this node's disk. Everything here blocks; the worker calls it off the executor's threads.
//!
//! - [`payload`]: pure: which files a volume of files holds
//! - [`atomic`]: puts them in place as a whole
//! - [`beneath`]: reaches into a volume without being led out of it
//!
//! Invariant: every path that comes from a pod spec is either a single checked name or opened below a root.

pub mod atomic;
pub mod beneath;
pub mod payload;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use api::quantity;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use nix::mount::{MsFlags, mount};

use self::payload::Secrecy;
use crate::{
    env::{Environment, Sources, expand},
    paths::component,
    runtime::{Mount, Propagation},
};

/// A volume cannot be provided; the text goes into an event.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct VolumeError(pub String);

/// Where a volume lies, ready to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub path: PathBuf,
    /// The node writes it; containers only read.
    pub read_only: bool,
}

pub type PreparedVolumes = BTreeMap<String, Prepared>;

fn home(pod_dir: &Path, volume: &str) -> Result<PathBuf, VolumeError> {
    let name = component(volume).map_err(|error| VolumeError(error.to_string()))?;
    Ok(pod_dir.join("volumes").join(name))
}

fn set_up(volume: &str, error: impl std::fmt::Display) -> VolumeError {
    VolumeError(format!("MountVolume.SetUp failed for volume {volume:?} : {error}"))
}

fn group(pod: &Pod) -> Option<u32> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group.and_then(|g| u32::try_from(g).ok())
}

/// Makes every volume of the pod ready. May be called again: what is ready stays as it is, files are brought up to date.
pub fn prepare(pod_dir: &Path, pod: &Pod, sources: &Sources) -> Result<PreparedVolumes, VolumeError> {
    let mut out = PreparedVolumes::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let prepared = prepare_one(&home(pod_dir, &volume.name)?, pod, volume, sources)?;
        out.insert(volume.name.clone(), prepared);
    }
    Ok(out)
}

fn prepare_one(dir: &Path, pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Prepared, VolumeError> {
    let failed = |error: io::Error| set_up(&volume.name, error);
    if let Some(files) = payload::payload(pod, volume, sources) {
        let (files, secrecy) = files.map_err(|error| set_up(&volume.name, error))?;
        fs::create_dir_all(dir).map_err(failed)?;
        if secrecy == Secrecy::Secret && !beneath::is_mounted(dir) {
            in_memory(dir, "mode=0755").map_err(failed)?;
        }
        atomic::write(dir, &files, group(pod)).map_err(failed)?;
        return Ok(Prepared { path: dir.to_owned(), read_only: true });
    }
    if let Some(source) = &volume.empty_dir {
        empty_dir(dir, source, group(pod)).map_err(failed)?;
        return Ok(Prepared { path: dir.to_owned(), read_only: false });
    }
    if let Some(source) = &volume.host_path {
        host_path(source)?;
        return Ok(Prepared { path: PathBuf::from(&source.path), read_only: false });
    }
    Err(set_up(&volume.name, "this node does not provide volumes of this kind"))
}

fn in_memory(dir: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options))?)
}

fn empty_dir(dir: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir)?;
    let memory = source.medium.as_deref() == Some("Memory");
    if memory && !beneath::is_mounted(dir) {
        let size = source.size_limit.as_ref().map(quantity::units).filter(|size| *size > 0);
        let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
        in_memory(dir, &options)?;
    } else if !fresh {
        return Ok(());
    }
    // Files that containers create belong to the pod's group.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if group.is_some() {
        std::os::unix::fs::chown(dir, None, group)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn host_path(source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(VolumeError(format!("hostPath {:?} is not an absolute path without \"..\"", source.path)));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let make = |made: io::Result<()>| {
        made.map_err(|error| VolumeError(format!("hostPath {} cannot be created: {error}", source.path)))
    };
    match kind {
        "DirectoryOrCreate" if !path.exists() => make(fs::create_dir_all(path))?,
        "FileOrCreate" if !path.exists() => make(fs::File::create(path).map(drop))?,
        _ => {}
    }
    let found = fs::metadata(path).ok().map(|meta| meta.file_type());
    let (good, what) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (found.is_some_and(|t| t.is_dir()), "directory"),
        "File" | "FileOrCreate" => (found.is_some_and(|t| t.is_file()), "file"),
        "Socket" => (found.is_some_and(|t| t.is_socket()), "socket file"),
        "CharDevice" => (found.is_some_and(|t| t.is_char_device()), "character device"),
        "BlockDevice" => (found.is_some_and(|t| t.is_block_device()), "block device"),
        other => return Err(VolumeError(format!("hostPath type {other:?} is not known"))),
    };
    if good {
        return Ok(());
    }
    Err(VolumeError(format!("hostPath type check failed: {} is not a {what}", source.path)))
}

/// The mounts of one container, subPaths resolved and pinned.
pub fn mounts(
    pod_dir: &Path,
    prepared: &PreparedVolumes,
    container: &Container,
    env: &Environment,
) -> Result<Vec<Mount>, VolumeError> {
    let mut out = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = prepared.get(&wanted.name) else {
            return Err(VolumeError(format!("volume {:?} of container {} is not there", wanted.name, container.name)));
        };
        let sub = match (&wanted.sub_path_expr, &wanted.sub_path) {
            (Some(expression), _) if !expression.is_empty() => Some(sub_path(expression, env)?),
            (_, Some(path)) if !path.is_empty() => Some(path.clone()),
            _ => None,
        };
        let host_path = match sub {
            None => {
                // A hostPath without a type may name what is not there yet; a directory is what the runtime would need.
                if !volume.path.exists() {
                    let made = fs::create_dir_all(&volume.path);
                    made.map_err(|error| VolumeError(format!("create {}: {error}", volume.path.display())))?;
                }
                volume.path.clone()
            }
            Some(path) => {
                let name = component(&container.name).map_err(|error| VolumeError(error.to_string()))?;
                let pin = pod_dir.join("subpaths").join(format!("{name}-{index}"));
                pin_sub_path(&volume.path, Path::new(&path), &pin).map_err(|error| {
                    VolumeError(format!("subPath {path:?} of volume {:?} cannot be mounted: {error}", wanted.name))
                })?;
                pin
            }
        };
        out.push(Mount {
            host_path,
            container_path: PathBuf::from(&wanted.mount_path),
            read_only: volume.read_only || wanted.read_only == Some(true),
            propagation: match wanted.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                Some(_) | None => Propagation::None,
            },
        });
    }
    Ok(out)
}

fn sub_path(expression: &str, env: &Environment) -> Result<String, VolumeError> {
    let path = expand(expression, |name| env.get(name).map(str::to_owned));
    if path.contains("$(") {
        return Err(VolumeError(format!("subPathExpr {expression:?} names a variable that is not set")));
    }
    Ok(path)
}

/// Binds what the subPath names now to a place that only the node can change, so that the container cannot exchange it
/// between the check and the mount.
fn pin_sub_path(volume: &Path, path: &Path, pin: &Path) -> io::Result<()> {
    let fd = beneath::open_or_create(volume, path, 0o750)?;
    while beneath::is_mounted(pin) {
        nix::mount::umount2(pin, nix::mount::MntFlags::MNT_DETACH)?;
    }
    if let Ok(meta) = fs::symlink_metadata(pin) {
        if meta.is_dir() { fs::remove_dir(pin)? } else { fs::remove_file(pin)? }
    }
    beneath::bind_fd(&fd, pin)
}

/// Removes everything that the pod's directory holds, mounts first. A second time is no error.
pub fn remove(pod_dir: &Path) -> io::Result<()> {
    beneath::unmount_below(pod_dir)?;
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(volumes: serde_json::Value, mounts: serde_json::Value) -> Pod {
        let containers = json!([{"name": "c", "volumeMounts": mounts}]);
        let value = json!({"metadata": {"name": "p"}, "spec": {"containers": containers, "volumes": volumes}});
        serde_json::from_value(value).expect("a pod")
    }

    fn error(volumes: serde_json::Value) -> String {
        let home = tempfile::tempdir().expect("a directory");
        let result = prepare(home.path(), &pod(volumes, json!([])), &Sources::default());
        result.expect_err("an error").to_string()
    }

    #[test]
    fn empty_dirs_and_host_paths() {
        let home = tempfile::tempdir().expect("a directory");
        let host = home.path().join("host/made");
        let volumes = json!([
            {"name": "scratch", "emptyDir": {}},
            {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
        ]);
        let mounts_of = json!([
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "host", "mountPath": "/host", "readOnly": true},
        ]);
        let pod = pod(volumes, mounts_of);
        let pod_dir = home.path().join("pod");
        let prepared = prepare(&pod_dir, &pod, &Sources::default()).expect("prepared");
        fs::write(prepared["scratch"].path.join("kept"), "x").expect("written");
        assert_eq!(prepare(&pod_dir, &pod, &Sources::default()).expect("again"), prepared);
        assert!(prepared["scratch"].path.join("kept").exists() && host.is_dir());

        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        let mounts = mounts(&pod_dir, &prepared, container, &Environment::default()).expect("mounts");
        let shown: Vec<_> = mounts.iter().map(|m| (m.container_path.to_str(), m.read_only)).collect();
        assert_eq!(shown, [(Some("/scratch"), false), (Some("/host"), true)]);

        remove(&pod_dir).expect("removed");
        remove(&pod_dir).expect("removed again");
        assert!(!pod_dir.exists() && host.exists());
    }

    #[test]
    fn what_cannot_be_is_named() {
        assert_eq!(
            error(json!([{"name": "v", "hostPath": {"path": "/proc/version", "type": "Directory"}}])),
            "hostPath type check failed: /proc/version is not a directory"
        );
        assert_eq!(
            error(json!([{"name": "v", "hostPath": {"path": "/a/../b"}}])),
            "hostPath \"/a/../b\" is not an absolute path without \"..\""
        );
        assert_eq!(error(json!([{"name": "../v", "emptyDir": {}}])), "\"../v\" cannot be the name of a file");
        assert_eq!(
            error(json!([{"name": "v", "configMap": {"name": "no"}}])),
            "MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found"
        );
    }
}
