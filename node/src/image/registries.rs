//! `registries.yaml` in k3s' form: which endpoints stand in for a registry, and how to talk to each.
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint: ["http://10.0.0.9:5000"]
//!     rewrite: {"^library/(.*)": "mirror/$1"}
//! configs:
//!   "10.0.0.9:5000":
//!     auth: {username: u, password: p}
//!     tls: {ca_file: /etc/ca.crt, insecure_skip_verify: false}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Auth, ImageError, Reference};

/// The whole file; the default is no mirrors, every registry by HTTPS at its own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, RegistryConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Mirror {
    endpoint: Vec<String>,
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct RegistryConfig {
    auth: Option<AuthConfig>,
    tls: Tls,
}

#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    /// base64 of `username:password`.
    auth: String,
    identity_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthConfig({:?}, ..)", self.username)
    }
}

/// How one endpoint's certificate is checked, and what it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to ask for an image, in the order they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host` or `host:port`.
    pub host: String,
    pub plain_http: bool,
    /// The repository there, after an endpoint's path and rewrites.
    pub repository: String,
    pub auth: Option<Auth>,
    pub tls: Tls,
}

impl Registries {
    pub fn load(path: &Path) -> Result<Registries, ImageError> {
        let text = std::fs::read_to_string(path).map_err(ImageError::io("read registries file", path))?;
        Self::parse(&text).map_err(|message| ImageError::Store {
            operation: "parse registries file",
            path: path.display().to_string(),
            message,
        })
    }

    pub fn parse(text: &str) -> Result<Registries, String> {
        if text.trim().is_empty() {
            return Ok(Registries::default());
        }
        let file: Registries = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        for (name, mirror) in &file.mirrors {
            for endpoint in &mirror.endpoint {
                split_endpoint(endpoint).map_err(|e| format!("mirrors.{name}.endpoint \"{endpoint}\": {e}"))?;
            }
            for pattern in mirror.rewrite.keys() {
                Rewrite::parse(pattern).map_err(|e| format!("mirrors.{name}.rewrite \"{pattern}\": {e}"))?;
            }
        }
        Ok(file)
    }

    /// Where to look for an image: its mirrors in order (or those of `*`), then the registry itself.
    pub fn endpoints(&self, image: &Reference) -> Vec<Endpoint> {
        let mut out = Vec::new();
        if let Some(mirror) = self.mirrors.get(&image.registry).or_else(|| self.mirrors.get("*")) {
            let repository = mirror.rewritten(&image.repository);
            for endpoint in &mirror.endpoint {
                let Ok((plain_http, host, path)) = split_endpoint(endpoint) else { continue };
                let repository = if path.is_empty() { repository.clone() } else { format!("{path}/{repository}") };
                out.push(self.endpoint(host, plain_http, repository));
            }
        }
        let own = image.registry_host();
        if !out.iter().any(|e| e.host == own && e.repository == image.repository) {
            let mut endpoint = self.endpoint(own.to_owned(), false, image.repository.clone());
            endpoint.auth = endpoint.auth.or_else(|| self.auth(&image.registry));
            out.push(endpoint);
        }
        out
    }

    fn endpoint(&self, host: String, plain_http: bool, repository: String) -> Endpoint {
        let tls = self.configs.get(&host).map(|c| c.tls.clone()).unwrap_or_default();
        Endpoint { plain_http, repository, auth: self.auth(&host), tls, host }
    }

    fn auth(&self, host: &str) -> Option<Auth> {
        use base64::Engine;
        let auth = self.configs.get(host)?.auth.as_ref()?;
        if !auth.identity_token.is_empty() {
            return Some(Auth::Bearer(auth.identity_token.clone()));
        }
        if !auth.username.is_empty() {
            return Some(Auth::Basic { username: auth.username.clone(), password: auth.password.clone() });
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

impl Mirror {
    /// The first rewrite that matches, by the order of the patterns.
    fn rewritten(&self, repository: &str) -> String {
        self.rewrite
            .iter()
            .find_map(|(pattern, to)| Rewrite::parse(pattern).ok()?.apply(repository, to))
            .unwrap_or_else(|| repository.to_owned())
    }
}

/// The rewrites people write: `^prefix/(.*)` and plain text, with `$1` for the rest. Anything that
/// needs more of regular expressions is refused when the file is read, so nothing is silently unmatched.
struct Rewrite {
    prefix: String,
    anchored: bool,
    rest: bool,
}

impl Rewrite {
    fn parse(pattern: &str) -> Result<Rewrite, &'static str> {
        let (anchored, body) = pattern.strip_prefix('^').map_or((false, pattern), |p| (true, p));
        let body = body.strip_suffix('$').unwrap_or(body);
        let (prefix, rest) = body.strip_suffix("(.*)").map_or((body, false), |p| (p, true));
        if prefix.contains(['(', ')', '[', ']', '*', '+', '?', '|', '\\', '{', '}', '^', '$']) {
            return Err("only ^prefix(.*) and plain text are understood");
        }
        Ok(Rewrite { prefix: prefix.to_owned(), anchored, rest })
    }

    fn apply(&self, repository: &str, to: &str) -> Option<String> {
        let at = if self.anchored {
            repository.starts_with(&self.prefix).then_some(0)
        } else {
            repository.find(&self.prefix)
        }?;
        let behind = &repository[at + self.prefix.len()..];
        let replaced =
            if self.rest { to.replace("${1}", behind).replace("$1", behind) } else { format!("{to}{behind}") };
        Some(format!("{}{replaced}", &repository[..at]))
    }
}

/// `http://host:port/path` into (plain HTTP, host:port, path); a trailing `/v2` is what k3s users often write.
fn split_endpoint(endpoint: &str) -> Result<(bool, String, String), &'static str> {
    let (plain, rest) = match endpoint.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some(_) => return Err("the scheme is neither http nor https"),
        None => (false, endpoint),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
        return Err("there is no plain host name in it");
    }
    let path = path.trim_matches('/');
    let path = path.strip_prefix("v2").filter(|p| p.is_empty() || p.starts_with('/')).unwrap_or(path);
    Ok((plain, host.to_owned(), path.trim_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Reference {
        Reference::parse(name).unwrap()
    }

    #[test]
    fn mirrors_come_in_order_before_the_registry_itself() {
        let text = r#"
mirrors:
  docker.io:
    endpoint: ["http://10.0.0.9:5000", "https://mirror.example.com/v2/hub"]
    rewrite:
      "^library/(.*)": "base/$1"
configs:
  "10.0.0.9:5000":
    auth: {username: u, password: p}
  "mirror.example.com":
    tls: {insecure_skip_verify: true}
"#;
        let got = Registries::parse(text).unwrap().endpoints(&image("nginx"));
        let brief: Vec<_> = got.iter().map(|e| (e.host.as_str(), e.plain_http, e.repository.as_str())).collect();
        assert_eq!(
            brief,
            [
                ("10.0.0.9:5000", true, "base/nginx"),
                ("mirror.example.com", false, "hub/base/nginx"),
                ("registry-1.docker.io", false, "library/nginx"),
            ]
        );
        assert_eq!(got[0].auth, Some(Auth::Basic { username: "u".into(), password: "p".into() }));
        assert!(got[1].tls.insecure_skip_verify);
    }

    #[test]
    fn a_registry_without_mirrors_is_asked_itself_and_a_star_serves_all() {
        let plain = Registries::default().endpoints(&image("quay.io/a/b"));
        assert_eq!(plain.len(), 1);
        assert_eq!((plain[0].host.as_str(), plain[0].plain_http), ("quay.io", false));
        let star = Registries::parse("mirrors: {'*': {endpoint: ['http://m:1']}}").unwrap();
        assert_eq!(star.endpoints(&image("quay.io/a/b"))[0].host, "m:1");
        let own = Registries::parse("mirrors: {'r:5000': {endpoint: ['http://r:5000']}}").unwrap();
        assert_eq!(own.endpoints(&image("r:5000/a")).len(), 1, "a plain-HTTP mirror of itself is not tried twice");
    }

    #[test]
    fn an_encoded_auth_is_read() {
        let file = Registries::parse("configs: {quay.io: {auth: {auth: dTpw}}}").unwrap();
        let want = Some(Auth::Basic { username: "u".into(), password: "p".into() });
        assert_eq!(file.endpoints(&image("quay.io/a"))[0].auth, want);
    }

    #[test]
    fn a_file_that_says_nothing_usable_is_refused() {
        for text in [
            "mirrors: {a: {endpoint: ['ftp://x']}}",
            "mirrors: {a: {endpoint: ['http://']}}",
            "mirrors: {a: {rewrite: {'(a|b)': c}}}",
            "mirrors: [1]",
        ] {
            assert!(Registries::parse(text).is_err(), "{text}");
        }
        assert_eq!(Registries::parse("").unwrap(), Registries::default());
    }
}
