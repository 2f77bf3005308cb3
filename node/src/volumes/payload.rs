//! What lies in config map, secret, downward API and projected volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume},
};

use super::atomic::{File, Payload};
use crate::env::{ConfigError, Sources, TokenKey, field_value, resource_value};

/// Mode of files where nothing else is said.
const DEFAULT_MODE: i32 = 0o644;
/// A service account's token expires after this where the volume does not say.
pub const TOKEN_SECONDS: i64 = 3600;

/// How the content of a volume is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    Plain,
    /// Kept in memory, never written to a disk.
    Secret,
}

/// The files of a volume; None when it is not of a kind that is made of files.
pub fn payload(pod: &Pod, volume: &Volume, sources: &Sources) -> Option<Result<(Payload, Secrecy), ConfigError>> {
    let mut build = Build { pod, sources, out: Payload::new() };
    let secrecy;
    let result = if let Some(source) = &volume.config_map {
        secrecy = Secrecy::Plain;
        build.config_map(&source.name, source.optional, source.items.as_deref(), source.default_mode)
    } else if let Some(source) = &volume.secret {
        secrecy = Secrecy::Secret;
        let name = source.secret_name.as_deref().unwrap_or_default();
        build.secret(name, source.optional, source.items.as_deref(), source.default_mode)
    } else if let Some(source) = &volume.downward_api {
        secrecy = Secrecy::Plain;
        build.downward(source.items.as_deref().unwrap_or_default(), source.default_mode)
    } else if let Some(source) = &volume.projected {
        let parts = source.sources.as_deref().unwrap_or_default();
        let secret = parts.iter().any(|p| p.secret.is_some() || p.service_account_token.is_some());
        secrecy = if secret { Secrecy::Secret } else { Secrecy::Plain };
        parts.iter().try_for_each(|part| build.projection(part, source.default_mode))
    } else {
        return None;
    };
    Some(result.map(|()| (build.out, secrecy)))
}

struct Build<'a> {
    pod: &'a Pod,
    sources: &'a Sources,
    out: Payload,
}

impl Build<'_> {
    fn projection(
        &mut self,
        part: &k8s_openapi::api::core::v1::VolumeProjection,
        mode: Option<i32>,
    ) -> Result<(), ConfigError> {
        if let Some(source) = &part.config_map {
            self.config_map(&source.name, source.optional, source.items.as_deref(), mode)?;
        }
        if let Some(source) = &part.secret {
            self.secret(&source.name, source.optional, source.items.as_deref(), mode)?;
        }
        if let Some(source) = &part.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default(), mode)?;
        }
        if let Some(source) = &part.service_account_token {
            let key = token_key(source);
            // Where the API hands out no tokens the file is left out, and the rest of the volume is useful all the same.
            if let Some(token) = self.sources.tokens.get(&key) {
                let uid = run_as_user(self.pod);
                let mode = if uid.is_some() { 0o600 } else { 0o644 };
                self.out.insert(source.path.clone(), File { content: token.clone().into_bytes(), mode, uid });
            }
        }
        Ok(())
    }

    fn config_map(
        &mut self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
    ) -> Result<(), ConfigError> {
        let Some(map) = self.sources.config_maps.get(name).cloned().flatten() else {
            let missing = ConfigError(format!("configmap {name:?} not found"));
            return if optional == Some(true) { Ok(()) } else { Err(missing) };
        };
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        self.keys(text.chain(binary).collect(), &format!("configmap {name:?}"), optional, items, mode)
    }

    fn secret(
        &mut self,
        name: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
    ) -> Result<(), ConfigError> {
        let Some(secret) = self.sources.secrets.get(name).cloned().flatten() else {
            let missing = ConfigError(format!("secret {name:?} not found"));
            return if optional == Some(true) { Ok(()) } else { Err(missing) };
        };
        let data = secret.data.iter().flatten().map(|(key, ByteString(value))| (key.clone(), value.clone()));
        self.keys(data.collect(), &format!("secret {name:?}"), optional, items, mode)
    }

    fn keys(
        &mut self,
        data: BTreeMap<String, Vec<u8>>,
        owner: &str,
        optional: Option<bool>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
    ) -> Result<(), ConfigError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in data {
                self.out.insert(key, file(content, mode));
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(content) => {
                    self.out.insert(item.path.clone(), file(content.clone(), item.mode.or(mode)));
                }
                None if optional == Some(true) => {}
                None => return Err(ConfigError(format!("{owner} references non-existent key {:?}", item.key))),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], mode: Option<i32>) -> Result<(), ConfigError> {
        for item in items {
            let text = if let Some(field) = &item.field_ref {
                field_value(self.pod, field, &self.sources.node, &[])?
            } else if let Some(resource) = &item.resource_field_ref {
                resource_value(self.pod, &Container::default(), resource, &self.sources.node)?
            } else {
                String::new()
            };
            self.out.insert(item.path.clone(), file(text.into_bytes(), item.mode.or(mode)));
        }
        Ok(())
    }
}

fn file(content: Vec<u8>, mode: Option<i32>) -> File {
    File { content, mode: u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644), uid: None }
}

/// The user that every container runs as, if it is one and the same.
fn run_as_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let of = |c: &Container| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod);
    let first = of(spec.containers.first()?)?;
    let same = spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(|c| of(c) == Some(first));
    same.then(|| u32::try_from(first).ok()).flatten()
}

fn token_key(source: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection) -> TokenKey {
    TokenKey {
        audience: source.audience.clone().filter(|a| !a.is_empty()),
        expiration_seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS),
    }
}

/// What the pod's volumes refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
    pub tokens: Vec<TokenKey>,
}

pub fn references(pod: &Pod) -> References {
    let mut out = References::default();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        out.config_maps.extend(volume.config_map.iter().map(|s| s.name.clone()));
        out.secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            out.config_maps.extend(part.config_map.iter().map(|s| s.name.clone()));
            out.secrets.extend(part.secret.iter().map(|s| s.name.clone()));
            out.tokens.extend(part.service_account_token.iter().map(token_key));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn files(volume: serde_json::Value) -> Result<Vec<(String, String, u32)>, ConfigError> {
        let value = json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b", "c": "d"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
        });
        let pod: Pod = serde_json::from_value(value).expect("a pod");
        let map = serde_json::from_value(json!({"data": {"x": "1", "y": "2"}, "binaryData": {"z": "AA=="}}));
        let secret = serde_json::from_value(json!({"data": {"pw": "c2VjcmV0"}}));
        let sources = Sources {
            config_maps: [("cm".to_owned(), Some(Arc::new(map.expect("a map"))))].into(),
            secrets: [("sec".to_owned(), Some(Arc::new(secret.expect("a secret"))))].into(),
            ..Sources::default()
        };
        let volume = serde_json::from_value(volume).expect("a volume");
        let (payload, _) = payload(&pod, &volume, &sources).expect("a volume of files")?;
        let show = |(path, f): (String, File)| (path, String::from_utf8_lossy(&f.content).into_owned(), f.mode);
        Ok(payload.into_iter().map(show).collect())
    }

    fn row(path: &str, text: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), text.to_owned(), mode)
    }

    #[test]
    fn files_of_every_source() {
        let table = [
            (
                json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400}}),
                vec![row("x", "1", 0o400), row("y", "2", 0o400), row("z", "\0", 0o400)],
            ),
            (
                json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "y", "path": "d/e", "mode": 0o600}]}}),
                vec![row("d/e", "2", 0o600)],
            ),
            (json!({"name": "v", "configMap": {"name": "no", "optional": true}}), vec![]),
            (json!({"name": "v", "secret": {"secretName": "sec"}}), vec![row("pw", "secret", 0o644)]),
            (
                json!({"name": "v", "downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
                ]}}),
                vec![row("cpu", "1500", 0o644), row("labels", "a=\"b\"\nc=\"d\"", 0o644)],
            ),
            (
                json!({"name": "v", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token"}},
                    {"configMap": {"name": "cm", "items": [{"key": "x", "path": "ca"}]}},
                    {"secret": {"name": "sec"}},
                ]}}),
                vec![row("ca", "1", 0o644), row("pw", "secret", 0o644)],
            ),
        ];
        for (volume, expected) in table {
            assert_eq!(files(volume.clone()), Ok(expected), "{volume}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let table = [
            (json!({"name": "v", "configMap": {"name": "no"}}), "configmap \"no\" not found"),
            (json!({"name": "v", "secret": {"secretName": "no"}}), "secret \"no\" not found"),
            (
                json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "q", "path": "q"}]}}),
                "configmap \"cm\" references non-existent key \"q\"",
            ),
        ];
        for (volume, expected) in table {
            assert_eq!(files(volume), Err(ConfigError(expected.to_owned())));
        }
    }
}
