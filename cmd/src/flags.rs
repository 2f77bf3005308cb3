//! The command line, the environment and the config file, in this order of precedence.
//!
//! A config file holds flags by their names, as YAML. It is turned into arguments for those flags that neither the
//! command line nor the environment gives, so that one parser knows all names and types.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind, parser::ValueSource,
};
use serde_json::Value;

/// A small Kubernetes-compatible cluster: API server, store, scheduler, controllers and nodes in one binary.
#[derive(Parser, Debug)]
#[command(name = "minik8s", version, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the control plane.
    Server(Server),
    /// Run a node.
    Agent(Agent),
    /// Run a whole cluster in this process, until Ctrl-C.
    Dev(Dev),
    /// Show the servers of the cluster, and which of them leads.
    Status {
        #[command(flatten)]
        server: RunningServer,
        /// Print everything there is to know, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a server from the cluster for good, by its name, address or number, as `status` shows them.
    Remove {
        #[command(flatten)]
        server: RunningServer,
        /// Its name, address or number.
        #[arg(value_name = "SERVER")]
        which: String,
    },
    /// Print the token with which agents join.
    Token(DataDir),
    /// Look after a node's images.
    Image(Image),
    /// Save the cluster to a file, and make a server of one.
    Snapshot {
        #[command(subcommand)]
        action: SnapshotAction,
    },
    /// See how secrets are encrypted in the store, and change the key.
    Encryption {
        #[command(subcommand)]
        action: EncryptionAction,
    },
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Args, Debug)]
pub struct DataDir {
    /// Where everything durable is kept.
    #[arg(long, env = "MINIK8S_DATA_DIR", default_value = "/var/lib/minik8s", value_name = "DIR")]
    pub data_dir: PathBuf,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Server {
    #[command(subcommand)]
    pub action: Option<ServerAction>,
    #[command(flatten)]
    pub data: DataDir,
    /// The address that the API server listens on.
    #[arg(long, env = "MINIK8S_BIND", default_value = "0.0.0.0:6443", value_name = "ADDRESS:PORT")]
    pub bind: SocketAddr,
    /// The address that nodes and clients reach this server at; found by itself when not given.
    #[arg(long, env = "MINIK8S_ADVERTISE_ADDRESS", value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// The servers of a cluster to become a further server of: `https://HOST:6443`, several with commas. Ignored once it is one.
    #[arg(long, env = "MINIK8S_JOIN", value_name = "URL", value_delimiter = ',', requires = "token")]
    pub join: Vec<String>,
    /// With --join, what another server's file server-token holds. Else the secret part of the agents' join token, or the
    /// whole of it: in place of a random one, and of the one in force until now.
    #[arg(long, env = "MINIK8S_TOKEN", value_name = "TOKEN")]
    pub token: Option<String>,
    /// A further name or address for the server's certificate.
    #[arg(long, env = "MINIK8S_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Where the etcd API is served: https:// for holders of an administrator's certificate, such as
    /// <data-dir>/tls/etcd-client.crt; http:// for everybody, on a
    /// loopback address only; or none.
    #[arg(long, env = "MINIK8S_ETCD_LISTEN", value_name = "URL", value_parser = etcd_listen)]
    pub etcd_listen: Option<EtcdListen>,
    /// How much the store may hold, such as 2GiB or 512MiB, at least 16MiB. Beyond it nothing but deletes is taken.
    #[arg(long, env = "MINIK8S_STORE_QUOTA", default_value = "2GiB", value_name = "SIZE", value_parser = size)]
    pub store_quota: usize,
    /// How often a snapshot of the cluster is taken into <data-dir>/snapshots, such as 12h or 30m; 0 for never.
    #[arg(long, env = "MINIK8S_SNAPSHOT_INTERVAL", default_value = "12h", value_name = "TIME", value_parser = duration)]
    pub snapshot_interval: Duration,
    /// Encrypts them with the first line of this file.
    #[arg(long, env = "MINIK8S_SNAPSHOT_PASSPHRASE_FILE", value_name = "FILE")]
    pub snapshot_passphrase_file: Option<PathBuf>,
    /// How many of these snapshots are kept.
    #[arg(long, env = "MINIK8S_SNAPSHOT_KEEP", default_value = "5", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub snapshot_keep: u32,
    #[command(flatten)]
    pub encrypt: Encrypt,
    #[command(flatten)]
    pub networks: Networks,
    #[command(flatten)]
    pub config: ConfigFile,
}

#[derive(Args, Clone, Debug)]
pub struct Encrypt {
    /// Resources whose objects are encrypted in the store, such as secrets,configmaps,deployments.apps; empty for none.
    #[arg(long, env = "MINIK8S_ENCRYPT", default_value = "secrets", value_name = "RESOURCE", value_delimiter = ',')]
    pub encrypt: Vec<String>,
}

#[derive(Subcommand, Debug)]
pub enum ServerAction {
    /// Make a cluster of one of a server whose cluster has lost its majority for good. The server must not run.
    Recover {
        #[command(flatten)]
        data: DataDir,
        /// Go on, although what the others acknowledged without this server is lost.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Networks {
    /// The addresses of pods.
    #[arg(long, env = "MINIK8S_CLUSTER_CIDR", default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: String,
    /// The addresses of services.
    #[arg(long, env = "MINIK8S_SERVICE_CIDR", default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: String,
    /// The address of the cluster's DNS server, one of the service addresses.
    #[arg(long, env = "MINIK8S_CLUSTER_DNS", default_value = "10.96.0.10", value_name = "IP")]
    pub cluster_dns: IpAddr,
}

#[derive(Args, Debug)]
pub struct ConfigFile {
    /// A YAML file of flags, such as `data-dir: /srv/minik8s`.
    #[arg(long = "config", env = "MINIK8S_CONFIG", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Agent {
    /// The servers to join: `https://HOST:6443`.
    #[arg(long, env = "MINIK8S_JOIN", value_name = "URL", value_delimiter = ',')]
    pub join: Vec<String>,
    /// The join token that the server printed.
    #[arg(long, env = "MINIK8S_TOKEN", value_name = "TOKEN")]
    pub token: Option<String>,
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub node: Node,
    #[command(flatten)]
    pub config: ConfigFile,
}

#[derive(Args, Debug)]
pub struct RunDir {
    /// Where sockets and mounts live until the next boot.
    #[arg(long, env = "MINIK8S_RUN_DIR", default_value = "/run/minik8s", value_name = "DIR")]
    pub run_dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct Node {
    #[command(flatten)]
    pub run: RunDir,
    /// The node's name; the host's when not given.
    #[arg(long, env = "MINIK8S_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The address that other nodes reach this one at; found by itself when not given.
    #[arg(long, env = "MINIK8S_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// A label for the node, `key=value`.
    #[arg(long, env = "MINIK8S_NODE_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_label: Vec<String>,
    /// A taint for the node, `key=value:Effect`.
    #[arg(long, env = "MINIK8S_NODE_TAINT", value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub node_taint: Vec<String>,
    /// Mirrors and credentials of image registries, in the form of k3s' registries.yaml.
    #[arg(long, env = "MINIK8S_REGISTRIES", value_name = "FILE")]
    pub registries: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Dev {
    #[command(flatten)]
    pub data: DataDir,
    /// Leave the pods running at the end; the next start takes them over.
    #[arg(long)]
    pub keep: bool,
    /// The address that the API server listens on.
    #[arg(long, env = "MINIK8S_BIND", default_value = "0.0.0.0:6443", value_name = "ADDRESS:PORT")]
    pub bind: SocketAddr,
    #[command(flatten)]
    pub node: Node,
    #[command(flatten)]
    pub encrypt: Encrypt,
    #[command(flatten)]
    pub networks: Networks,
    #[command(flatten)]
    pub config: ConfigFile,
}

#[derive(Subcommand, Debug)]
pub enum SnapshotAction {
    /// Save the cluster of the running server to a file. It holds every secret and key: keep it safe.
    Save {
        #[command(flatten)]
        server: RunningServer,
        #[command(flatten)]
        secret: Secret,
        file: PathBuf,
    },
    /// List and check the snapshots that the server took on its schedule.
    Ls {
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        secret: Secret,
    },
    /// Fill an empty data directory with the cluster of a snapshot.
    Restore {
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        secret: Secret,
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
pub struct Secret {
    /// The file whose first line the snapshot is encrypted with.
    #[arg(long, env = "MINIK8S_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// Where the etcd API is served, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdListen {
    Nowhere,
    /// To whoever shows an administrator's certificate.
    Tls(SocketAddr),
    /// To everybody on this machine.
    Plain(SocketAddr),
}

fn etcd_listen(text: &str) -> Result<EtcdListen, String> {
    let address = |text: &str| {
        let text = text.trim_end_matches('/');
        text.parse::<SocketAddr>().map_err(|_| format!("{text:?} is no address such as 127.0.0.1:2379"))
    };
    match text.split_once("://") {
        None if text == "none" => Ok(EtcdListen::Nowhere),
        Some(("https", rest)) => address(rest).map(EtcdListen::Tls),
        Some(("http", rest)) => match address(rest)? {
            address if address.ip().is_loopback() => Ok(EtcdListen::Plain(address)),
            address => {
                Err(format!("{} can be reached by others, who would have every secret: use https://", address.ip()))
            }
        },
        _ => Err("it is none, or https:// or http:// with an address and a port".to_owned()),
    }
}

#[derive(Subcommand, Debug)]
pub enum EncryptionAction {
    /// Print the keys, what is encrypted with them, and how far a rotation is.
    Status(RunningServer),
    /// Make a new key, and have everything encrypted with it.
    Rotate(RunningServer),
}

/// A running server.
#[derive(Args, Debug)]
pub struct RunningServer {
    #[command(flatten)]
    pub data: DataDir,
    /// Names the server, where it is not the one of --data-dir; KUBECONFIG otherwise.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `512MiB`, `2GiB`.
fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is no size such as 512MiB or 2GiB");
    let (number, unit) = match (text.strip_suffix("MiB"), text.strip_suffix("GiB")) {
        (Some(number), _) => (number, 1 << 20),
        (None, Some(number)) => (number, 1 << 30),
        (None, None) => return Err(wrong()),
    };
    let number: usize = number.parse().map_err(|_| wrong())?;
    // Less would not even hold an empty cluster.
    const LEAST: usize = 16 << 20;
    match number.checked_mul(unit) {
        Some(size) if size >= LEAST => Ok(size),
        Some(_) => Err(format!("{text} is less than the 16MiB that a cluster needs")),
        None => Err(wrong()),
    }
}

/// `90s`, `30m`, `12h`, `7d`, or 0.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time such as 30m, 12h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

#[derive(Args, Debug)]
pub struct Image {
    #[command(flatten)]
    pub data: DataDir,
    #[command(flatten)]
    pub run: RunDir,
    #[command(subcommand)]
    pub action: ImageAction,
}

#[derive(Subcommand, Debug)]
pub enum ImageAction {
    /// Take images from an archive of docker save's form, or an OCI layout, packed by tar.
    Import { file: PathBuf },
    /// List images.
    Ls,
    /// Remove images by name.
    Rm { images: Vec<String> },
    /// Remove images that no pod uses.
    Gc,
}

/// Reads the command line, the environment, and the config file that either names.
pub fn parse() -> Result<Command, clap::Error> {
    parse_from(std::env::args_os().collect())
}

fn parse_from(words: Vec<OsString>) -> Result<Command, clap::Error> {
    let matches = Cli::command().try_get_matches_from(&words)?;
    let Some((name, given)) = matches.subcommand() else { return Ok(Cli::from_arg_matches(&matches)?.command) };
    let file = given.try_get_one::<PathBuf>("file").ok().flatten();
    let Some(path) = file.filter(|_| matches!(name, "server" | "agent" | "dev")) else {
        return Ok(Cli::from_arg_matches(&matches)?.command);
    };
    let extra = arguments(name, path, given).map_err(|text| Cli::command().error(ErrorKind::ValueValidation, text))?;
    // The file's flags come last and only where nothing else was given, so they can neither override nor repeat.
    let words: Vec<OsString> = words.into_iter().chain(extra.into_iter().map(OsString::from)).collect();
    Ok(Cli::from_arg_matches(&Cli::command().try_get_matches_from(words)?)?.command)
}

/// The flags of a config file that were not given otherwise, as arguments.
fn arguments(subcommand: &str, path: &Path, given: &ArgMatches) -> Result<Vec<String>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("--config {shown}: {e}"))?;
    let parsed: Value = serde_saphyr::from_str(&text).map_err(|e| format!("--config {shown}: {e}"))?;
    let flags = match parsed {
        Value::Object(flags) => flags,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(format!("--config {shown}: a map of flags is expected, such as `data-dir: /srv/minik8s`")),
    };
    let cli = Cli::command();
    let known = cli.find_subcommand(subcommand).into_iter().flat_map(clap::Command::get_arguments);
    let known: Vec<&clap::Arg> = known.collect();
    let mut out = Vec::new();
    for (flag, value) in flags {
        let arg = known.iter().find(|a| a.get_long() == Some(&flag) && flag != "config");
        let arg = arg.ok_or_else(|| format!("--config {shown}: {subcommand} has no flag named {flag:?}"))?;
        let source = given.value_source(arg.get_id().as_str());
        if matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values,
            single => vec![single],
        };
        for value in values {
            match value {
                Value::Bool(true) if !arg.get_action().takes_values() => out.push(format!("--{flag}")),
                Value::Bool(false) if !arg.get_action().takes_values() => {}
                Value::String(text) => out.push(format!("--{flag}={text}")),
                Value::Number(number) => out.push(format!("--{flag}={number}")),
                other => return Err(format!("--config {shown}: {flag}: {other} is not a value for a flag")),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        let words = std::iter::once("minik8s").chain(words.iter().copied()).map(OsString::from).collect();
        parse_from(words).map_err(|e| e.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_encrypted() {
        for (words, want) in [
            (&["server"][..], &["secrets"][..]),
            (&["server", "--encrypt", "secrets,configmaps"], &["secrets", "configmaps"]),
            (&["server", "--encrypt="], &[""]),
        ] {
            let Ok(Command::Server(flags)) = parsed(words) else { panic!("a server is expected") };
            assert_eq!(flags.encrypt.encrypt, want, "{words:?}");
        }
    }

    #[test]
    fn sizes_and_places() {
        for (text, bytes) in [("16MiB", Some(16 << 20)), ("2GiB", Some(2 << 30))] {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
        for text in ["", "2", "2GB", "-1GiB", "1.5GiB", "99999999999999GiB", "1MiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(etcd_listen("none"), Ok(EtcdListen::Nowhere));
        assert_eq!(etcd_listen("https://0.0.0.0:2379"), Ok(EtcdListen::Tls(address("0.0.0.0:2379"))));
        assert_eq!(etcd_listen("http://127.0.0.1:2379/"), Ok(EtcdListen::Plain(address("127.0.0.1:2379"))));
        for text in ["http://10.0.0.1:2379", "127.0.0.1:2379", "https://host:2379", "https://127.0.0.1"] {
            assert!(etcd_listen(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [("0", Some(0)), ("90s", Some(90)), ("12h", Some(43200)), ("7d", Some(604_800))] {
            assert_eq!(duration(text).ok().map(|time| time.as_secs()), seconds, "{text}");
        }
        for text in ["", "h", "12", "-1h", "1.5h", "12 h", "1h30m", "9h\u{e9}"] {
            assert!(duration(text).is_err_and(|e| e.contains("12h")), "{text}");
        }
    }

    #[test]
    fn a_config_file_fills_what_the_command_line_leaves() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "data-dir: /srv/x\nbind: 127.0.0.1:7000\ntls-san: [a, b]\n").expect("written");
        let path = file.to_str().expect("UTF-8");
        let Ok(Command::Server(flags)) = parsed(&["server", "--bind", "127.0.0.1:8000", "--config", path]) else {
            panic!("a server is expected")
        };
        assert_eq!(flags.data.data_dir, PathBuf::from("/srv/x"));
        assert_eq!(flags.bind.port(), 8000, "the command line wins");
        assert_eq!(flags.tls_san, ["a", "b"]);
        assert_eq!(flags.encrypt.encrypt, ["secrets"]);

        for (text, part) in
            [("no-such: 1\n", "no flag named \"no-such\""), ("- a\n", "map of flags"), ("bind: x\n", "--bind")]
        {
            std::fs::write(&file, text).expect("written");
            let error = parsed(&["server", "--config", path]).expect_err("refused");
            assert!(error.contains(part), "{text:?}: {error}");
        }
        std::fs::write(&file, "join: https://m:6443\nkeep: true\n").expect("written");
        assert!(parsed(&["agent", "--config", path]).is_err_and(|e| e.contains("keep")));
    }
}
