//! What breaks, and what must go on: servers and agents killed, containers killed, a host cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster,
    cluster::condition,
    host::{Host, sh},
    wait::seconds,
};
use serde_json::Value;

const WEB_APP: &str = include_str!("../../manifests/web-app.yaml");

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Sends requests to a service all the time, from a host, and counts the answers that did not come.
struct Traffic {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    thread: thread::JoinHandle<usize>,
}

impl Traffic {
    fn start(host: &Host, url: String) -> Traffic {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (host, stopped, failures) = (host.clone(), Arc::clone(&stop), Arc::clone(&failed));
        let thread = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                sent += 1;
                if let Err(error) = host.curl(&url) {
                    eprintln!("request {sent} failed: {error:#}");
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            }
            sent
        });
        Traffic { stop, failed, thread }
    }

    fn end(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().map_err(|_| anyhow::anyhow!("the traffic thread panicked"))?;
        Ok((sent, self.failed.load(Ordering::Relaxed)))
    }
}

/// Creates under way at every moment, each on a connection of its own.
const IN_FLIGHT: usize = 200;
/// More than the server gets done before it is killed.
const CREATES: usize = 20_000;

/// Creates of config maps by curl, which says of each whether it was acknowledged.
struct Creates(std::process::Child);

impl Creates {
    fn start(cluster: &Cluster) -> Result<Creates> {
        let url = format!("https://{}:6443/api/v1/namespaces/default/configmaps", cluster.m.address);
        let cert = cluster.client_certificate()?;
        let mut requests = String::new();
        for n in 0..CREATES {
            let body = format!(r#"{{\"metadata\":{{\"name\":\"k{n}\",\"labels\":{{\"kills\":\"yes\"}}}}}}"#);
            requests += &format!(
                "url = {url}\ndata = \"{body}\"\nheader = \"content-type: application/json\"\nhttp1.1\nsilent\n\
                 insecure\ncert = {cert}\noutput = /dev/null\nmax-time = 30\nwrite-out = \"%{{http_code}} k{n}\\n\"\nnext\n",
                cert = cert.display(),
            );
        }
        let file = cluster.path("creates");
        std::fs::write(&file, requests.trim_end_matches("next\n"))?;
        let mut command = cluster.x.command("curl");
        command.args(["--parallel", "--parallel-immediate", "--parallel-max", &IN_FLIGHT.to_string(), "--config"]);
        let child = command.arg(&file).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        Ok(Creates(child.spawn()?))
    }

    /// The names that were answered with 201, once curl has given up on the rest.
    fn acknowledged(self) -> Result<BTreeSet<String>> {
        let output = self.0.wait_with_output()?;
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(lines.lines().filter_map(|line| line.strip_prefix("201 ")).map(str::to_owned).collect())
    }
}

/// Every acknowledged object is there after kill -9, none twice, and traffic never stopped.
#[test]
fn killed_server_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start("kills", &["a", "b"])?;
    cluster.apply(WEB_APP)?;
    cluster.pods_ready("app=web-app", 2, seconds(60))?;
    let service = cluster.get("service web-app-service")?;
    let url = format!("http://{}/", text(&service[0], "/spec/clusterIP"));
    cluster.wait("answer from the service", seconds(20), || cluster.workers[0].host.curl(&url).map(Some))?;
    let traffic = Traffic::start(&cluster.workers[0].host, url);

    let writers = Creates::start(&cluster)?;
    cluster.wait("a part of the creates", seconds(60), || {
        let created = cluster.get("configmaps -l kills=yes")?.len();
        Ok((created >= IN_FLIGHT).then_some(()))
    })?;
    cluster.kill_server()?;
    let created = writers.acknowledged()?;
    eprintln!("{} creates were acknowledged before the server was killed", created.len());
    ensure!(created.len() >= IN_FLIGHT && created.len() < CREATES, "{} were acknowledged", created.len());
    cluster.start_server()?;
    let listed: Vec<String> =
        cluster.get("configmaps -l kills=yes")?.iter().map(|c| text(c, "/metadata/name").to_owned()).collect();
    let there: BTreeSet<&String> = listed.iter().collect();
    ensure!(there.len() == listed.len(), "an object is listed twice");
    let lost: Vec<_> = created.iter().filter(|name| !there.contains(name)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    cluster.wait_nodes_ready()?;
    // The control plane works again: something new comes up.
    cluster.kubectl(&["scale", "deployment/web-app", "--replicas=3"])?;
    cluster.pods_ready("app=web-app", 3, seconds(60))?;
    let (sent, failed) = traffic.end()?;
    ensure!(failed == 0 && sent > 0, "{failed} of {sent} requests failed");
    Ok(())
}

/// The processes of a node's containers, by their own cgroups.
fn container_pids(node: &str) -> Result<BTreeSet<u32>> {
    let line = format!("find /sys/fs/cgroup/pids/minik8s/{node} -path '*pod*' -name cgroup.procs -exec cat {{}} +");
    let output = std::process::Command::new("sh").args(["-c", &line]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|l| l.parse().ok()).collect())
}

/// Containers outlive their agent, and are adopted; a container that dies is restarted and counted, later and later.
#[test]
fn killed_agent_and_killed_containers() -> Result<()> {
    let mut cluster = Cluster::start("agent", &["a"])?;
    cluster.apply(WEB_APP)?;
    let before = cluster.pods_ready("app=web-app", 2, seconds(60))?;
    let pids = container_pids("a")?;
    ensure!(pids.len() >= 2, "{pids:?}");
    cluster.kill_agent(0)?;
    ensure!(container_pids("a")? == pids, "the containers went with the agent");
    cluster.start_agent(0)?;
    cluster.wait_nodes_ready()?;
    let after = cluster.pods_ready("app=web-app", 2, seconds(30))?;
    let ids = |pods: &[Value]| -> BTreeMap<String, String> {
        pods.iter()
            .map(|p| {
                (text(p, "/metadata/uid").to_owned(), text(p, "/status/containerStatuses/0/containerID").to_owned())
            })
            .collect()
    };
    ensure!(ids(&before) == ids(&after) && container_pids("a")? == pids, "the containers were replaced");

    let name = text(&after[0], "/metadata/name").to_owned();
    let restarts = |n: i64| {
        cluster.wait(&format!("restart {n}"), seconds(40), || {
            let pod = cluster.get(&format!("pod {name}"))?;
            let count = pod[0]["status"]["containerStatuses"][0]["restartCount"].as_i64();
            Ok((count == Some(n) && condition(&pod[0], "Ready") == "True").then_some(()))
        })
    };
    // PID 1 of a container ignores a signal from inside that it does not handle: the host kills it.
    let kill = || {
        let uid = text(&after[0], "/metadata/uid");
        sh(&format!(
            "kill -KILL $(find /sys/fs/cgroup/pids/minik8s/a -path '*{uid}*' -name cgroup.procs -exec cat {{}} + | sort -n | head -1)"
        ))
    };
    kill()?;
    restarts(1)?;
    let killed = Instant::now();
    kill()?;
    cluster.wait("back-off", seconds(20), || {
        let listed = cluster.kubectl(&["get", "pod", &name])?;
        Ok(listed.contains("CrashLoopBackOff").then_some(()))
    })?;
    restarts(2)?;
    ensure!(killed.elapsed() >= seconds(5), "the second restart came after {:?}", killed.elapsed());
    Ok(())
}

/// A host cut off: NotReady, out of its services, its pods replaced; healed, it comes back by itself.
#[test]
fn cut_off_host_is_replaced_and_comes_back() -> Result<()> {
    let cluster = Cluster::start("cut", &["a", "b"])?;
    let short = "tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      containers:";
    cluster.apply(&WEB_APP.replacen("containers:", short, 1))?;
    let pods = cluster.pods_ready("app=web-app", 2, seconds(60))?;
    // This one tolerates the loss for longer than it lasts: it must be the same pod, Ready again, after.
    let stays = ["run", "stays", "--image=nginx:latest", r#"--overrides={"spec":{"nodeName":"b"}}"#];
    cluster.kubectl(&stays)?;
    let stays = cluster.pods_ready("run=stays", 1, seconds(60))?;
    let on_b = pods.iter().find(|p| text(p, "/spec/nodeName") == "b").context("a pod on b")?;
    let (name, ip) = (text(on_b, "/metadata/name").to_owned(), text(on_b, "/status/podIP").to_owned());

    cluster.network.link("b", "down")?;
    let cut = Instant::now();
    cluster.wait("NotReady", seconds(60), || {
        let nodes = cluster.get("node b")?;
        let pod = cluster.get("pod stays")?;
        Ok((condition(&nodes[0], "Ready") == "Unknown" && condition(&pod[0], "Ready") == "False").then_some(()))
    })?;
    // The lease lasts 40 s from its last renewal, which was before the cut; one look at the cluster is allowed for.
    let took = cut.elapsed();
    eprintln!("NotReady {:.1} s after the cut", took.as_secs_f64());
    ensure!(took <= seconds(41), "NotReady after {took:?}");
    cluster.wait("endpoints without b", seconds(20), || {
        let endpoints = cluster.get("endpoints web-app-service")?;
        let ready = endpoints[0]["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default();
        Ok((!ready.is_empty() && ready.iter().all(|a| a["ip"] != ip.as_str())).then_some(()))
    })?;
    cluster.wait("replacement on a", seconds(60), || {
        let pods = cluster.get("pods -l app=web-app")?;
        let on_a = pods.iter().filter(|p| text(p, "/spec/nodeName") == "a" && condition(p, "Ready") == "True").count();
        Ok((on_a == 2).then_some(()))
    })?;

    cluster.network.link("b", "up")?;
    cluster.wait_nodes_ready()?;
    cluster.wait("end of the old pod", seconds(60), || {
        let pods = cluster.get("pods -l app=web-app")?;
        Ok((pods.len() == 2 && pods.iter().all(|p| text(p, "/metadata/name") != name)).then_some(()))
    })?;
    let same = cluster.pods_ready("run=stays", 1, seconds(30))?;
    ensure!(text(&same[0], "/metadata/uid") == text(&stays[0], "/metadata/uid"), "another pod took its place");
    let restarts = &same[0]["status"]["containerStatuses"][0]["restartCount"];
    ensure!(restarts == 0, "it was restarted {restarts} times");
    cluster.kubectl(&["delete", "pod", "stays"])?;
    cluster.wait("end of all processes on b", seconds(30), || Ok(container_pids("b")?.is_empty().then_some(())))?;
    let node = cluster.get("node b")?;
    ensure!(node[0]["spec"]["taints"].is_null(), "{}", node[0]["spec"]);
    Ok(())
}
