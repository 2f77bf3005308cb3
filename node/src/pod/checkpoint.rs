//! Pods as last seen, on disk, so that they run after a reboot although no API server answers.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

const FILE: &str = "pod.json";

/// Writes the pod with the status that this node knows. A torn file must not be seen, so it is renamed into place.
pub fn save(pod_dir: &Path, pod: &Pod) -> io::Result<()> {
    fs::create_dir_all(pod_dir)?;
    let next = pod_dir.join("pod.json.next");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    serde_json::to_writer(io::BufWriter::new(file), pod)?;
    fs::rename(next, pod_dir.join(FILE))
}

/// Every pod with a directory; None where the checkpoint is missing or cannot be read.
pub fn load_all(pods_dir: &Path) -> io::Result<Vec<(PathBuf, Option<Pod>)>> {
    let entries = match fs::read_dir(pods_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let dir = entry?.path();
        let pod = fs::read(dir.join(FILE)).ok().and_then(|bytes| serde_json::from_slice::<Pod>(&bytes).ok());
        // The directory's name is the uid; a file that says otherwise is not this pod's.
        let own = |pod: &Pod| pod.metadata.uid.as_deref().is_some_and(|uid| dir.ends_with(uid));
        out.push((dir.clone(), pod.filter(own)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_torn_is_not() {
        let home = tempfile::tempdir().expect("a directory");
        assert!(load_all(&home.path().join("none")).expect("no directory is no pod").is_empty());
        let value = serde_json::json!({"metadata": {"name": "p", "uid": "u1"}, "status": {"phase": "Running"}});
        let pod: Pod = serde_json::from_value(value).expect("a pod");
        save(&home.path().join("u1"), &pod).expect("saved");
        save(&home.path().join("u2"), &pod).expect("saved under a wrong name");
        fs::create_dir_all(home.path().join("u3")).expect("made");
        fs::write(home.path().join("u3/pod.json"), "{\"metad").expect("written");
        let mut loaded = load_all(home.path()).expect("loaded");
        loaded.sort_by(|a, b| a.0.cmp(&b.0));
        let pods: Vec<_> = loaded.into_iter().map(|(_, pod)| pod).collect();
        assert_eq!(pods, [Some(pod), None, None]);
    }
}
