//! How a server becomes a further one of a cluster: it shows the servers' token, and gets its number and the cluster's keys.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use apiserver::{Admission, Application, admit, paths};
use node::join::{Refusal, Token, ask};

/// Between two rounds over all the servers named.
const PAUSE: Duration = Duration::from_secs(2);

/// What makes another machine a further server, of the cluster of the one at `url`. The token itself is worth the whole
/// cluster: it stands in its file only, which is on the machine of `data_dir`.
pub fn command(url: &str, data_dir: &Path) -> String {
    format!("minik8s server --join {url} --token TOKEN, which is in {} here", data_dir.join("server-token").display())
}

/// The file that says where a server whose store was set aside is to join anew.
fn rejoin(data_dir: &Path) -> PathBuf {
    data_dir.join("rejoin")
}

/// Where to join anew, and with which token, if that was begun and not done.
pub fn pending(data_dir: &Path) -> Result<Option<(Vec<String>, String)>> {
    let path = rejoin(data_dir);
    let url = match fs::read_to_string(&path) {
        Ok(url) => url,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let token = data_dir.join("server-token");
    let token = fs::read_to_string(&token).with_context(|| format!("read {}", token.display()))?;
    Ok(Some((vec![url], token)))
}

/// Writes down where to join anew.
pub fn intend(data_dir: &Path, url: &str) -> Result<()> {
    let path = rejoin(data_dir);
    apiserver::write_private(&path, url.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// Refuses servers that are not named as they should be, and a directory that is of another cluster than the token.
pub fn check(servers: &[String], token: &str, data_dir: &Path) -> Result<()> {
    for server in servers {
        let host = server.strip_prefix("https://").unwrap_or_default();
        ensure!(!host.trim_matches('/').is_empty(), "--join {server:?}: a server is named as https://HOST:6443");
    }
    let token = Token::parse(token).map_err(|error| anyhow!("--token: {error}"))?;
    let ca = data_dir.join("tls/ca.crt");
    match fs::read_to_string(&ca) {
        Ok(pem) => ensure!(
            token.is_of(&pem),
            "{} is of another cluster than --token: join with an empty --data-dir",
            ca.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", ca.display())),
    }
    Ok(())
}

/// It has joined.
pub fn forget(data_dir: &Path) -> Result<()> {
    let path = rejoin(data_dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Joins the cluster of `servers`, as long as it takes, and makes the store of a member in `store_dir`.
pub async fn join(
    servers: &[String],
    token: &str,
    (data_dir, store_dir): (&Path, &Path),
    us: Application,
) -> Result<()> {
    let token = Token::parse(token).map_err(|error| anyhow!("--token: {error}"))?;
    let request = serde_json::to_value(&us)?;
    let mut told = String::new();
    let answer = 'joined: loop {
        for server in servers {
            match ask(server.trim_end_matches('/'), &token, (paths::SERVERS, &request)).await {
                Ok(answer) => break 'joined answer,
                Err(Refusal::Never(error)) => bail!("join {server}: {error}"),
                // The same complaint once, not every few seconds.
                Err(Refusal::Later(why) | Refusal::Taken(why)) if why != told => {
                    tracing::warn!(server, why, "the cluster cannot be joined yet; trying on");
                    told = why;
                }
                Err(Refusal::Later(_) | Refusal::Taken(_)) => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    let admission: Admission = serde_json::from_str(&answer).context("read the answer to the request to join")?;
    let id = admit(data_dir, &admission).map_err(anyhow::Error::msg)?;
    // Last: a directory with a store is one of a server that has joined.
    store::prepare_join(store_dir, id).context("make the store of a server that joins")
}
