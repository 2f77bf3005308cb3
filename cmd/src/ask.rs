//! Questions to a running server, in the name of whoever may read its kubeconfig.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Method;
use serde_json::Value;

use crate::flags::RunningServer;

/// A large store on a slow machine takes a while; a server that does not answer at all shows earlier.
const ANSWER: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(10);

/// A server, and how to ask it.
pub struct Running {
    client: reqwest::Client,
    server: String,
    token: Option<String>,
}

impl Running {
    /// The server of a kubeconfig, or of a data directory.
    pub fn find(RunningServer { data, kubeconfig }: RunningServer) -> Result<Running> {
        open(&find_kubeconfig(&data.data_dir, kubeconfig)?)
    }

    /// The body of its answer; `what` says what it is asked to do, where there is none.
    pub async fn ask(&self, method: Method, path: &str, what: &str) -> Result<Vec<u8>> {
        let server = &self.server;
        let mut request = self.client.request(method, format!("{server}{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let within = || format!("cannot {what}");
        let answer = request.send().await.with_context(within)?;
        let status = answer.status();
        let body = answer.bytes().await.with_context(within)?;
        if !status.is_success() {
            let message = serde_json::from_slice::<Value>(&body).ok();
            let message = message.as_ref().and_then(|status| status["message"].as_str());
            bail!("cannot {what}: {server} says: {}", message.unwrap_or(status.as_str()));
        }
        Ok(body.into())
    }
}

/// The kubeconfig named, the one of the server in the data directory, or the one that kubectl would take.
fn find_kubeconfig(data_dir: &Path, named: Option<PathBuf>) -> Result<PathBuf> {
    let own = data_dir.join("kubeconfig.yaml");
    match named {
        Some(path) => Ok(path),
        None if own.exists() => Ok(own),
        // A list of files, of which kubectl takes no notice of those that are not there.
        None => std::env::var_os("KUBECONFIG")
            .and_then(|paths| std::env::split_paths(&paths).find(|path| path.is_file()))
            .with_context(|| {
                format!("no server in --data-dir {}: name another, or a --kubeconfig", data_dir.display())
            }),
    }
}

/// The client and the server that a kubeconfig names.
fn open(kubeconfig: &Path) -> Result<Running> {
    let text = fs::read_to_string(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config: Value = serde_saphyr::from_str(&text).with_context(|| format!("read {}", kubeconfig.display()))?;
    let within = || format!("use {}", kubeconfig.display());
    let (cluster, user) = current(&config).with_context(within)?;
    let base = kubeconfig.parent().unwrap_or(Path::new("."));
    let server = cluster["server"].as_str().context("its cluster has no server").with_context(within)?;
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .timeout(ANSWER);
    if let Some(pem) = material(cluster, "certificate-authority", base).with_context(within)? {
        builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&pem).with_context(within)?]);
    }
    if let Some(mut pem) = material(user, "client-certificate", base).with_context(within)? {
        pem.push(b'\n');
        pem.extend(material(user, "client-key", base).with_context(within)?.unwrap_or_default());
        builder = builder.identity(reqwest::Identity::from_pem(&pem).with_context(within)?);
    }
    let token = user["token"].as_str().map(str::to_owned);
    Ok(Running { client: builder.build()?, server: server.trim_end_matches('/').to_owned(), token })
}

/// The cluster and the user of a kubeconfig's current context.
fn current(config: &Value) -> Result<(&Value, &Value)> {
    let named = |list: &str, name: &Value, what: &'static str| {
        let entry = config[list].as_array().into_iter().flatten().find(|entry| entry["name"] == *name);
        entry.map(|entry| &entry[what]).with_context(|| format!("it has no {what} named {name}"))
    };
    let context = named("contexts", &config["current-context"], "context")?;
    Ok((named("clusters", &context["cluster"], "cluster")?, named("users", &context["user"], "user")?))
}

/// A certificate or key that stands in the kubeconfig itself, or in a file beside it.
fn material(entry: &Value, name: &str, base: &Path) -> Result<Option<Vec<u8>>> {
    if let Some(data) = entry[format!("{name}-data")].as_str() {
        return Ok(Some(BASE64_STANDARD.decode(data).with_context(|| format!("{name}-data"))?));
    }
    let Some(path) = entry[name].as_str().map(|path| base.join(path)) else { return Ok(None) };
    Ok(Some(fs::read(&path).with_context(|| format!("read {}", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("ca.crt"), "pem").expect("written");
        let config: Value = serde_saphyr::from_str(
            "current-context: b\ncontexts:\n- {name: a, context: {cluster: x, user: x}}\n- {name: b, context: {cluster: c, user: u}}\n\
             clusters:\n- {name: c, cluster: {server: 'https://h:1', certificate-authority: ca.crt}}\n\
             users:\n- {name: u, user: {client-key-data: a2V5, client-certificate-data: '?'}}\n",
        )
        .expect("YAML");
        let (cluster, user) = current(&config).expect("a context");
        assert_eq!(cluster["server"], "https://h:1");
        let of = |entry, name| material(entry, name, dir.path());
        assert_eq!(of(cluster, "certificate-authority").expect("read"), Some(b"pem".to_vec()));
        assert_eq!(of(user, "client-key").expect("read"), Some(b"key".to_vec()));
        assert_eq!(of(cluster, "client-key").expect("none"), None);
        assert!(of(user, "client-certificate").is_err());
        let error = current(&Value::Null).expect_err("no context");
        assert!(error.to_string().contains("no context"), "{error}");
    }
}
