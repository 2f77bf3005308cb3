//! Where a node keeps what; the only place that joins names from a pod spec to paths.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

/// Longest name that the API allows, and that a file system takes.
const COMPONENT_MAX: usize = 253;

/// A name is no path: it is refused, although the API server has validated it already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the name of a file")]
pub struct UnsafeName(pub String);

/// Checks that a name stays within the directory it is joined to.
pub fn component(name: &str) -> Result<&str, UnsafeName> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if name.is_empty() || name.len() > COMPONENT_MAX || name.starts_with('.') || !plain {
        return Err(UnsafeName(name.to_owned()));
    }
    Ok(name)
}

/// The directories under `--data-dir`.
#[derive(Clone, Debug)]
pub struct Paths {
    data: PathBuf,
}

impl Paths {
    pub fn new(data_dir: &Path) -> Paths {
        Paths { data: data_dir.join("agent") }
    }

    /// Certificate and key.
    pub fn identity(&self) -> PathBuf {
        self.data.clone()
    }

    /// One directory per pod: volumes, managed files, the checkpoint.
    pub fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    pub fn pod(&self, uid: &str) -> Result<PathBuf, UnsafeName> {
        Ok(self.pods().join(component(uid)?))
    }

    /// One directory per pod, kept until its object is gone.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    pub fn pod_logs(&self, pod: &Pod) -> Result<PathBuf, UnsafeName> {
        let meta = &pod.metadata;
        let part = |value: &Option<String>| component(value.as_deref().unwrap_or_default()).map(str::to_owned);
        Ok(self.logs().join(format!("{}_{}_{}", part(&meta.namespace)?, part(&meta.name)?, part(&meta.uid)?)))
    }

    pub fn container_log(&self, pod: &Pod, container: &str, attempt: u32) -> Result<PathBuf, UnsafeName> {
        Ok(self.pod_logs(pod)?.join(component(container)?).join(format!("{attempt}.log")))
    }

    /// What a container writes its last words to.
    pub fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> Result<PathBuf, UnsafeName> {
        Ok(self.pod(uid)?.join("containers").join(component(container)?).join(format!("{attempt}.message")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_where_they_are_put() {
        for good in ["web-0", "hello-world.example.com", "a_b", "0"] {
            assert_eq!(component(good), Ok(good));
        }
        for bad in ["", ".", "..", "a/b", "/etc", "../x", "a\0b", ".hidden", "ä", &"a".repeat(254)] {
            assert_eq!(component(bad), Err(UnsafeName(bad.to_owned())));
        }
    }
}
