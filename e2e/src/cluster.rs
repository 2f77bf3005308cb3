//! A server, agents, kubectl, and their end.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    host::{Host, Network, binary, sh, text},
    images::{Registry, layout},
    wait::{seconds, wait},
};

/// How long a process may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(15);

/// Nodes of one name would share cgroups on one kernel, and two cores hold one cluster well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The server on host `m`, a registry on `r`, an outsider on `x`, and one agent a worker.
pub struct Cluster {
    pub test: String,
    pub m: Host,
    /// A host that is no node.
    pub x: Host,
    pub registry: Registry,
    pub workers: Vec<Worker>,
    server: Option<Child>,
    pub dir: TempDir,
    // Declared last: the namespaces go after everything that runs in them.
    pub network: Network,
    _turn: MutexGuard<'static, ()>,
}

pub struct Worker {
    pub name: String,
    pub node: String,
    pub host: Host,
    pub labels: Vec<String>,
    agent: Option<Child>,
}

impl Cluster {
    /// Starts everything and waits until each worker is a Ready node. `workers` are names with labels: `a disk=ssd`.
    pub fn start(test: &str, workers: &[&str]) -> Result<Cluster> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix(&format!("m8s-{test}-")).tempdir()?;
        let mut network = Network::new(test)?;
        let m = network.host(test, "m", "10.77.0.1")?;
        let x = network.host(test, "x", "10.77.0.200")?;
        let r = network.host(test, "r", "10.77.0.9")?;
        let registry = Registry::start(r, dir.path())?;
        let mut hosts = Vec::new();
        for (i, spec) in workers.iter().enumerate() {
            let mut words = spec.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let host = network.host(test, &name, &format!("10.77.0.{}", 11 + i))?;
            let labels = words.map(str::to_owned).collect();
            hosts.push(Worker { node: name.clone(), name, host, labels, agent: None });
        }
        let mut cluster =
            Cluster { test: test.to_owned(), m, x, registry, workers: hosts, server: None, dir, network, _turn: turn };
        cluster.push_images()?;
        fs::write(
            cluster.path("registries.yaml"),
            format!("mirrors:\n  docker.io:\n    endpoint: [\"{}\"]\n", cluster.registry.url()),
        )?;
        cluster.start_server()?;
        for i in 0..cluster.workers.len() {
            cluster.start_agent(i)?;
        }
        cluster.wait_nodes_ready()?;
        Ok(cluster)
    }

    fn push_images(&self) -> Result<()> {
        // The images are the same for every test of a run.
        static LAYOUT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
        if LAYOUT.get().is_none() {
            let dir = tempfile::Builder::new().prefix("m8s-images-").tempdir()?;
            let path = layout(dir.path())?;
            let _ = LAYOUT.set((dir, path));
        }
        let (_, images) = LAYOUT.get().context("the images were made")?;
        let pushes = [
            ("busybox", "library/busybox:latest"),
            ("nginx", "library/nginx:latest"),
            ("nginx2", "library/nginx:2"),
            ("demo", "thecraftman/docker-demo:latest"),
        ];
        pushes.iter().try_for_each(|(image, reference)| self.registry.push(images, image, reference))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path("m/kubeconfig.yaml")
    }

    /// The administrator's certificate and key in one file, for clients that read no kubeconfig.
    pub fn client_certificate(&self) -> Result<PathBuf> {
        let file = self.path("admin.pem");
        let part = |data: &str| format!("kubectl config view --raw -o jsonpath={{.users[0].user.{data}}} | base64 -d");
        sh(&format!(
            "export KUBECONFIG={}; {{ {}; {}; }} >{}",
            self.kubeconfig().display(),
            part("client-certificate-data"),
            part("client-key-data"),
            file.display()
        ))?;
        Ok(file)
    }

    pub fn start_server(&mut self) -> Result<()> {
        let child = self.spawn(
            &self.m,
            "server",
            &["server", "--data-dir", &self.text("m"), "--advertise-address", &self.m.address],
        )?;
        self.server = Some(child);
        wait("ready API server", seconds(20), || {
            let answer = self.kubectl(&["get", "--raw", "/readyz"])?;
            Ok((answer == "ok").then_some(()))
        })
        .inspect_err(|_| self.dump())
    }

    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let token = fs::read_to_string(self.path("m/token")).context("read the join token")?;
        let worker = &self.workers[index];
        let server = format!("https://{}:6443", self.m.address);
        let (data, run) = (self.text(&worker.name), self.text(&format!("{}-run", worker.name)));
        let registries = self.text("registries.yaml");
        let mut args =
            vec!["agent", "--join", &server, "--token", token.trim(), "--data-dir", &data, "--run-dir", &run];
        args.extend(["--registries", &registries, "--node-name", &worker.node, "--node-ip", &worker.host.address]);
        args.extend(worker.labels.iter().flat_map(|label| ["--node-label", label]));
        let child = self.spawn(&worker.host, &worker.name, &args)?;
        self.workers[index].agent = Some(child);
        Ok(())
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn spawn(&self, host: &Host, name: &str, args: &[&str]) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log")))?;
        let mut command = host.command(binary()?.to_str().context("a path in UTF-8")?);
        command.args(args).env("MINIK8S_LOG", "info").stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {name}"))
    }

    pub fn wait_nodes_ready(&self) -> Result<()> {
        self.wait("Ready nodes", seconds(60), || {
            let ready = self.get("nodes")?.iter().filter(|n| condition(n, "Ready") == "True").count();
            Ok((ready == self.workers.len()).then_some(()))
        })
    }

    /// [`wait`], with the cluster's state printed when the deadline passes.
    pub fn wait<T>(&self, what: &str, deadline: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait(what, deadline, look).inspect_err(|_| self.dump())
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = self.x.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command.env("HOME", self.dir.path());
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        text(self.kubectl_command().args(args).output().context("run kubectl")?, &format!("kubectl {}", args.join(" ")))
    }

    /// `kubectl apply -f -` with a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut command = self.kubectl_command();
        command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("run kubectl")?;
        child.stdin.take().context("kubectl's input")?.write_all(manifest.as_bytes())?;
        text(child.wait_with_output()?, "kubectl apply")
    }

    /// The items of `kubectl get WHAT`; `what` may carry flags.
    pub fn get(&self, what: &str) -> Result<Vec<Value>> {
        let mut args: Vec<&str> = vec!["get", "-o", "json"];
        args.extend(what.split(' '));
        let list: Value = serde_json::from_str(&self.kubectl(&args)?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_else(|| vec![list]))
    }

    /// Waits until exactly `count` pods match and all are Ready.
    pub fn pods_ready(&self, selector: &str, count: usize, deadline: Duration) -> Result<Vec<Value>> {
        self.wait(&format!("{count} Ready pods of {selector}"), deadline, || {
            let pods = self.get(&format!("pods -l {selector}"))?;
            let all = pods.len() == count && pods.iter().all(|p| condition(p, "Ready") == "True");
            if all { Ok(Some(pods)) } else { Err(anyhow!("{}", self.kubectl(&["get", "pods", "-o", "wide"])?)) }
        })
    }

    pub fn server_pid(&self) -> Result<u32> {
        self.server.as_ref().map(Child::id).context("the server runs")
    }

    pub fn agent_pid(&self, index: usize) -> Result<u32> {
        self.workers[index].agent.as_ref().map(Child::id).context("the agent runs")
    }

    /// SIGKILL, without a chance to say goodbye.
    pub fn kill_server(&mut self) -> Result<()> {
        kill(self.server.take().context("the server runs")?)
    }

    pub fn kill_agent(&mut self, index: usize) -> Result<()> {
        kill(self.workers[index].agent.take().context("the agent runs")?)
    }

    /// SIGTERM, and waits for the orderly end.
    pub fn stop_agent(&mut self, index: usize) -> Result<()> {
        stop(self.workers[index].agent.take().context("the agent runs")?)
    }

    pub fn stop_server(&mut self) -> Result<()> {
        stop(self.server.take().context("the server runs")?)
    }

    /// Prints what one needs to see when a wait has failed.
    pub fn dump(&self) {
        let looks: [&[&str]; 4] = [
            &["get", "nodes", "-o", "wide"],
            &["get", "all,endpoints,endpointslices", "-A", "-o", "wide"],
            &["get", "events", "-A"],
            &["describe", "pods", "-A"],
        ];
        for look in looks {
            let mut args = vec!["--request-timeout", "5s"];
            args.extend(look);
            let out = self.kubectl(&args).unwrap_or_else(|e| format!("{e:#}"));
            eprintln!("---- {}: kubectl {}\n{out}", self.test, look.join(" "));
        }
        let mut logs = vec!["server".to_owned()];
        logs.extend(self.workers.iter().map(|w| w.name.clone()));
        for name in logs {
            let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("---- {}: {name}.log", self.test);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.dump();
        }
        for worker in &mut self.workers {
            let _ = worker.agent.take().map(kill);
        }
        let _ = self.server.take().map(kill);
        for worker in &self.workers {
            remove_node(&worker.node, self.dir.path());
        }
    }
}

/// Ends a node's containers and shims, which outlive their agent by design, and what is mounted below `dir`.
fn remove_node(node: &str, dir: &Path) {
    // The kernel removes a cgroup only once its last process is gone, which takes a moment after the signal.
    let line = format!(
        "for d in $(find /sys/fs/cgroup -depth -type d -path '*/minik8s/{node}*' 2>/dev/null); do
           for p in $(cat $d/cgroup.procs 2>/dev/null); do kill -KILL $p 2>/dev/null; done
         done
         for p in $(grep -alF -- '{dir}' /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3); do
           [ $p = {me} ] || [ $p = $$ ] || kill -KILL $p 2>/dev/null
         done
         i=0
         while [ $i -lt 50 ]; do
           awk -v d={dir}/ 'index($2, d) == 1 {{print $2}}' /proc/mounts | sort -r | xargs -r -n1 umount -l
           find /sys/fs/cgroup -depth -type d -path '*/minik8s/{node}*' -exec rmdir {{}} ';' 2>/dev/null
           [ -z \"$(find /sys/fs/cgroup -type d -path '*/minik8s/{node}*' 2>/dev/null)\" ] && break
           i=$((i+1)); sleep 0.1
         done",
        dir = dir.display(),
        me = std::process::id(),
    );
    let _ = sh(&line);
}

fn kill(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn stop(mut child: Child) -> Result<()> {
    sh(&format!("kill -TERM {}", child.id()))?;
    let status = wait("end after SIGTERM", STOP, || Ok(child.try_wait()?))?;
    if status.success() { Ok(()) } else { bail!("{status} after SIGTERM") }
}

/// A condition's status, or nothing.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|list| list.iter().find(|c| c["type"] == kind));
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}
