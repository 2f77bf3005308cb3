//! Servers, one a host, each with its data on a disk of its own; and how they end.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    host::{Host, Network, binary},
    wait::wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Client;

use super::{
    disk::{self, Disk},
    inside::Inside,
    kube::{self, Access, Protocol, Status},
};

/// How long a server may take to be ready, a member among members, and voting.
const READY: Duration = Duration::from_secs(60);
/// How long one may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(15);
/// How long one may take that is refused.
const REFUSED: Duration = Duration::from_secs(30);
/// What one wants to see of a log.
const TAIL: usize = 30;

/// Two processors hold one cluster well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub struct Server {
    pub name: String,
    pub host: Host,
    pub disk: Disk,
    child: Option<Child>,
    log: PathBuf,
    /// How much of the log has been looked through.
    seen: usize,
}

impl Server {
    fn data(&self) -> PathBuf {
        self.disk.path().join("data")
    }

    /// A command of the binary, on this host and for its data directory.
    pub fn command(&self, name: &str) -> Result<Command> {
        let mut command = self.host.command(binary()?.to_str().context("a path in UTF-8")?);
        command.args([name, "--data-dir"]).arg(self.data());
        Ok(command)
    }

    fn server(&self, more: &[&str]) -> Result<Command> {
        let mut command = self.command("server")?;
        command.env("MINIK8S_ADVERTISE_ADDRESS", &self.host.address).args(more);
        Ok(command)
    }

    /// Starts it on whatever is on its disk.
    pub fn start(&mut self, more: &[&str]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = self.server(more)?;
        command.env("MINIK8S_LOG", "info").stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    /// Runs it to its end, which must come by itself: with these arguments it cannot be a server.
    pub fn run(&self, more: &[&str]) -> Result<Output> {
        let mut command = self.server(more)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let done = wait(&format!("end of {} with {more:?}", self.name), REFUSED, || Ok(child.try_wait()?));
        if done.is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        done.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(output)
    }

    /// A file of its data directory.
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.data().join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn still_runs(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("{} ended with {status}: {}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} runs", self.name))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, without a chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    pub fn stopped(&mut self) -> Result<()> {
        let name = self.name.clone();
        let status = wait(&format!("end of {name} after SIGTERM"), STOP, || self.ended())?;
        ensure!(status.success(), "{name}: {status} after SIGTERM: {}", self.last_words());
        Ok(())
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Whether its log has this.
    pub fn has_said(&self, what: &str) -> Result<bool> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).contains(what))
    }

    /// The last line of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().last().unwrap_or_default().to_owned()
    }

    /// An end because of the disk: exit code 1, and one line that names a file on it.
    pub fn ended_of_its_disk(&self, status: ExitStatus) -> Result<()> {
        let (name, words) = (&self.name, self.last_words());
        ensure!(status.code() == Some(1), "{name} ended with {status} (signal {:?}): {words}", status.signal());
        let named = self.disk.path().display().to_string();
        ensure!(words.starts_with("minik8s: ") && words.contains(&named), "{name} ended and said only: {words}");
        Ok(())
    }

    /// What its log has since the last check, and how long it is now.
    fn news(&self) -> Result<(String, usize)> {
        let log = fs::read(&self.log)?;
        Ok((String::from_utf8_lossy(&log[self.seen.min(log.len())..]).into_owned(), log.len()))
    }

    /// Whether it has said that its store is at its end, so that it must end soon as well.
    pub fn stops(&self) -> Result<bool> {
        Ok(self.news()?.0.contains("the store stops"))
    }

    /// No panic, whatever happened.
    pub fn check_log(&mut self) -> Result<()> {
        let (new, seen) = self.news()?;
        self.seen = seen;
        let lines: Vec<&str> = new.lines().collect();
        let Some(at) = lines.iter().position(|line| line.contains("panicked")) else { return Ok(()) };
        bail!("{} panicked: {}", self.name, lines[at..lines.len().min(at + 3)].join(" | "))
    }

    fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Before its disk goes.
        let _ = self.kill();
    }
}

/// Where logs and disks are, as long as somebody has this.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = disk::clean(&self.0);
    }
}

/// All of them, and a host for their clients. The order of the fields is the one in which they go.
pub struct Servers {
    pub all: Vec<Server>,
    pub inside: Inside,
    pub access: Access,
    /// For looks from outside; it keeps no record.
    pub client: Client,
    /// What a further server needs.
    token: String,
    _directory: Directory,
    _network: Network,
    _turn: MutexGuard<'static, ()>,
}

impl Servers {
    /// Starts them all, and waits until all are members that vote.
    pub fn start(test: &str, count: usize) -> Result<Servers> {
        let mut servers = Servers::start_first(test, count)?;
        for at in 1..count {
            servers.join(at)?;
        }
        Ok(servers)
    }

    /// Makes all hosts and starts the first server alone.
    pub fn start_first(test: &str, count: usize) -> Result<Servers> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut network = Network::new(test)?;
        // One for each test, not for each run: what a run could not clean up is cleaned up by the next one.
        let directory = Directory(std::env::temp_dir().join(format!("m8s-{test}")));
        disk::clean(&directory.0)?;
        fs::create_dir_all(&directory.0)?;
        let clients = network.host(test, "x", "10.77.0.200")?;
        let mut all = Vec::new();
        for at in 0..count {
            let name = format!("s{at}");
            let host = network.host(test, &name, &format!("10.77.0.{}", at + 1))?;
            let (disk, log) = (Disk::new(&directory.0, &name)?, directory.0.join(format!("{name}.log")));
            all.push(Server { name, host, disk, child: None, log, seen: 0 });
        }
        all[0].start(&[])?;
        let kubeconfig = all[0].data().join("kubeconfig.yaml");
        let access = wait("kubeconfig", READY, || {
            if let Err(ended) = all[0].still_runs() {
                return Ok(Some(Err(ended)));
            }
            Access::read(&kubeconfig).map(|access| Some(Ok(access)))
        })??;
        let inside = Inside::new(&clients)?;
        let client = access.client(Protocol::Http1)?;
        let mut servers = Servers {
            all,
            inside,
            access,
            client,
            token: String::new(),
            _directory: directory,
            _network: network,
            _turn: turn,
        };
        wait("first server that is ready", READY, || servers.ready(0).map(Some))?;
        if count > 1 {
            let token = servers.all[0].read("server-token")?;
            token.trim().clone_into(&mut servers.token);
        }
        Ok(servers)
    }

    pub fn addresses(&self) -> Vec<String> {
        self.all.iter().map(|server| server.host.address.clone()).collect()
    }

    pub fn others(&self, than: usize) -> Vec<usize> {
        (0..self.all.len()).filter(|at| *at != than).collect()
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the others are, as `--join` takes it.
    pub fn join_urls(&self, than: usize) -> String {
        let urls = self.others(than).into_iter().map(|at| format!("https://{}:6443", self.all[at].host.address));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Starts a server with the command that makes it a member, if it is none by what is on its disk.
    pub fn spawn(&mut self, at: usize) -> Result<()> {
        let urls = self.join_urls(at);
        let token = self.token.clone();
        match self.all.len() {
            1 => self.all[at].start(&[]),
            _ => self.all[at].start(&["--join", &urls, "--token", &token]),
        }
    }

    /// Starts a further server, for the first time, and waits until it votes. Servers come in their order.
    pub fn join(&mut self, at: usize) -> Result<()> {
        let (first, token) = (format!("https://{}:6443", self.all[0].host.address), self.token.clone());
        self.all[at].start(&["--join", &first, "--token", &token])?;
        self.wait_members(at + 1)
    }

    pub fn status(&self, at: usize) -> Result<Status> {
        let (client, address) = (self.client.clone(), self.all[at].host.address.clone());
        self.inside.run(async move { kube::status(&client, &address).await })?
    }

    pub fn ready(&self, at: usize) -> Result<()> {
        let (client, address) = (self.client.clone(), self.all[at].host.address.clone());
        self.inside.run(async move { kube::ready(&client, &address).await })?
    }

    /// Waits until the first `count` servers are ready and agree that they are the members, all voting, and who leads.
    pub fn wait_members(&mut self, count: usize) -> Result<()> {
        wait(&format!("{count} servers that are one cluster"), READY, || {
            let mut leaders = Vec::new();
            for at in 0..count {
                if let Err(ended) = self.all[at].still_runs() {
                    return Ok(Some(Err(ended)));
                }
                self.ready(at).with_context(|| format!("server {at}"))?;
                if self.all.len() == 1 {
                    return Ok(Some(Ok(())));
                }
                let status = self.status(at).with_context(|| format!("server {at}"))?;
                let wanted = (0..count).map(|at| (self.all[at].host.address.clone(), true)).collect();
                ensure!(status.members == wanted, "server {at} has {:?}", status.members);
                leaders.push(status.leader.with_context(|| format!("server {at} has no leader"))?);
            }
            leaders.dedup();
            ensure!(leaders.len() == 1, "the leaders are {leaders:?}");
            Ok(Some(Ok(())))
        })?
    }

    pub fn leader(&self) -> Result<usize> {
        if self.all.len() == 1 {
            return Ok(0);
        }
        let addresses = self.addresses();
        wait("leader", READY, || {
            for at in 0..self.all.len() {
                let Ok(status) = self.status(at) else { continue };
                let found = status.leader.and_then(|leader| addresses.iter().position(|address| *address == leader));
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })
    }

    /// Prints the end of each log.
    pub fn dump(&self) {
        for server in &self.all {
            eprintln!("---- the end of {}.log\n{}", server.name, server.tail());
        }
    }

    /// Copies the logs to where they stay.
    pub fn keep_logs(&self, place: &std::path::Path) -> Result<()> {
        fs::create_dir_all(place)?;
        for server in &self.all {
            fs::copy(&server.log, place.join(format!("{}.log", server.name)))?;
        }
        Ok(())
    }
}
