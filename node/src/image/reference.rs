//! Image names: `nginx` means `docker.io/library/nginx:latest`.

use std::fmt;

use super::ImageError;

/// What a name without a registry means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The distribution specification's bound on a repository's name.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// A normalized image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// `latest` where a name has neither tag nor digest.
    pub tag: Option<String>,
    /// `sha256:..`; it wins over the tag.
    pub digest: Option<String>,
}

impl Reference {
    pub fn parse(name: &str) -> Result<Reference, ImageError> {
        let invalid = |message: &str| ImageError::InvalidName { name: name.to_owned(), message: message.to_owned() };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid("the digest is not sha256: and 64 lower-case hexadecimal digits")),
            None => (name, None),
        };
        // A colon behind the last slash starts a tag; one before it is a registry's port.
        let (path, tag) = match rest.rfind(':') {
            Some(i) if !rest[i + 1..].contains('/') => (&rest[..i], Some(rest[i + 1..].to_owned())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|t| !is_tag(t)) {
            return Err(invalid("the tag holds a character that is not allowed, or is empty or too long"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            _ => (DEFAULT_REGISTRY, path.to_owned()),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_registry(registry) {
            return Err(invalid("the registry's host name is malformed"));
        }
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if !is_repository(&repository) {
            return Err(invalid("a repository is lower-case letters, digits and separators"));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Where the registry itself answers.
    pub fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// The tag or digest a registry is asked for.
    pub fn selector(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Only sha256: every registry speaks it, and a digest is also a file name in the store.
pub fn is_digest(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= MAX_TAG
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_registry(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let name_ok = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !name.is_empty()
                && name.split('.').all(|label| {
                    !label.is_empty()
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                })
        }
    };
    name_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

fn is_repository(repository: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |c: &str| {
        let b = c.as_bytes();
        !b.is_empty()
            && alnum(b[0])
            && alnum(b[b.len() - 1])
            && b.iter().all(|&x| alnum(x) || matches!(x, b'.' | b'_' | b'-'))
            && !c.contains("..")
    };
    repository.len() <= MAX_REPOSITORY && repository.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_normalized() {
        let with_digest = format!("nginx@{D}");
        let both = format!("quay.io/a/b:v1@{D}");
        for (name, want) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("10.0.0.9:5000/nginx", "10.0.0.9:5000/nginx:latest"),
            ("[::1]:5000/nginx", "[::1]:5000/nginx:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            (&with_digest, &format!("docker.io/library/nginx@{D}")),
            (&both, &both),
        ] {
            assert_eq!(Reference::parse(name).map(|r| r.to_string()), Ok(want.to_owned()), "{name}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "a".repeat(256);
        for name in [
            "",
            ":",
            "nginx:",
            "nginx:a b",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "../../etc",
            "a/../b",
            "nginx@sha256:12",
            "nginx@md5:00",
            "-x.example.com/a",
            "example.com:99999/a",
            "a\nb",
            "x:y:z",
            &long,
        ] {
            assert!(Reference::parse(name).is_err(), "{name:?} was accepted");
        }
    }
}
