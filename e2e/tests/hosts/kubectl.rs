//! What a user does all day with kubectl.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster,
    cluster::condition,
    wait::{seconds, wait},
};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: site, labels: {app: site}}
spec:
  replicas: 2
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      containers:
        - {name: web, image: 'nginx:latest', ports: [{containerPort: 80}]}
";

#[test]
fn kubectls_everyday_commands() -> Result<()> {
    let cluster = Cluster::start("ctl", &["a", "b"])?;
    apply_twice(&cluster)?;
    rollout(&cluster)?;
    scale_and_watch(&cluster)?;
    logs_and_exec(&cluster)?;
    describe_and_delete(&cluster)?;
    create_by_command(&cluster)
}

fn apply_twice(cluster: &Cluster) -> Result<()> {
    ensure!(cluster.apply(DEPLOYMENT)?.contains("created"));
    ensure!(cluster.apply(DEPLOYMENT)?.contains("unchanged"));
    let changed = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
    ensure!(cluster.apply(&changed)?.contains("configured"));
    cluster.pods_ready("app=site", 3, seconds(60)).map(drop)
}

fn rollout(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["set", "image", "deployment/site", "web=nginx:2"])?;
    let status = cluster.kubectl(&["rollout", "status", "deployment/site", "--timeout=60s"])?;
    ensure!(status.contains("successfully rolled out"), "{status}");
    let ip = |pods: &[serde_json::Value]| pods[0]["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let answer = |ip: &str| cluster.workers[0].host.curl(&format!("http://{ip}/"));
    let pods = cluster.pods_ready("app=site", 3, seconds(60))?;
    ensure!(answer(&ip(&pods))?.contains("version-two-saw"));
    let history = cluster.kubectl(&["rollout", "history", "deployment/site"])?;
    ensure!(history.lines().any(|l| l.starts_with('2')), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/site"])?;
    cluster.kubectl(&["rollout", "status", "deployment/site", "--timeout=60s"])?;
    let pods = cluster.pods_ready("app=site", 3, seconds(60))?;
    ensure!(!answer(&ip(&pods))?.contains("version-two"));
    Ok(())
}

/// A child of kubectl's whose lines are read as they come.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn start(cluster: &Cluster, args: &[&str]) -> Result<Lines> {
        let mut child = cluster.kubectl_command().args(args).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("kubectl's output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Lines { child, lines, seen: Vec::new() })
    }

    fn until(&mut self, what: &str, found: impl Fn(&[String]) -> bool) -> Result<()> {
        wait(what, seconds(30), || {
            self.seen.extend(self.lines.try_iter());
            ensure!(found(&self.seen), "{:?}", self.seen);
            Ok(Some(()))
        })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scale_and_watch(cluster: &Cluster) -> Result<()> {
    let mut watch = Lines::start(cluster, &["get", "pods", "-l", "app=site", "-w"])?;
    watch.until("first table", |lines| lines.iter().filter(|l| l.contains("1/1")).count() >= 3)?;
    cluster.kubectl(&["scale", "deployment/site", "--replicas=4"])?;
    watch.until("fourth pod", |lines| {
        let running: std::collections::BTreeSet<_> =
            lines.iter().filter(|l| l.contains("1/1")).filter_map(|l| l.split_whitespace().next()).collect();
        running.len() >= 4
    })?;
    cluster.kubectl(&["scale", "deployment/site", "--replicas=1"])?;
    watch.until("pods that go", |lines| lines.iter().filter(|l| l.contains("Terminating")).count() >= 3)?;
    cluster.pods_ready("app=site", 1, seconds(60)).map(drop)
}

fn logs_and_exec(cluster: &Cluster) -> Result<()> {
    let talker = ["run", "talker", "--image=busybox:latest", "--restart=Never", "--", "sh", "-c"];
    let script = "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done";
    cluster.kubectl(&[&talker[..], &[script]].concat())?;
    cluster.wait("running talker", seconds(30), || {
        let pods = cluster.get("pods talker")?;
        Ok((pods[0]["status"]["phase"] != "Pending").then_some(()))
    })?;
    let mut follow = Lines::start(cluster, &["logs", "-f", "talker"])?;
    follow.until("the last line", |lines| lines.iter().any(|l| l == "line 6"))?;
    ensure!(follow.seen.first().is_some_and(|l| l == "line 1"), "{:?}", follow.seen);
    cluster.wait("completed talker", seconds(30), || {
        Ok(cluster.kubectl(&["get", "pod", "talker"])?.contains("Completed").then_some(()))
    })?;
    ensure!(cluster.kubectl(&["logs", "talker", "--tail=2"])? == "line 5\nline 6\n");

    let pod = cluster.kubectl(&["get", "pods", "-l", "app=site", "-o", "name"])?;
    let pod = pod.trim();
    // A terminal needs one on our side too: `script` makes it.
    let line = format!(
        "stty rows 33 cols 77; kubectl --kubeconfig {} exec -it {pod} -- timeout 10 sh -c 'tty; until stty size | grep 77; do :; done; exit 3'",
        cluster.kubeconfig().display()
    );
    let out = cluster.x.command("script").args(["-qec", &line, "/dev/null"]).output()?;
    let shown = String::from_utf8_lossy(&out.stdout);
    ensure!(
        shown.contains("/dev/pts/") && shown.contains("33 77") && out.status.code() == Some(3),
        "{:?}: {shown}",
        out.status
    );
    // Until 1.29 kubectl spoke SPDY; newer ones still know how.
    for websockets in ["true", "false"] {
        let exec = |args: &[&str]| {
            let mut command = cluster.kubectl_command();
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).args(["exec", "-i", pod, "--"]).args(args);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().context("start kubectl")
        };
        let mut cat = exec(&["cat"])?;
        std::io::Write::write_all(&mut cat.stdin.take().context("input")?, b"through and back\n")?;
        ensure!(cat.wait_with_output()?.stdout == b"through and back\n", "WebSockets: {websockets}");
        let failed = exec(&["sh", "-c", "echo no >&2; exit 7"])?.wait_with_output()?;
        let said = String::from_utf8_lossy(&failed.stderr);
        ensure!(failed.status.code() == Some(7) && said.contains("exit code 7") && said.contains("no"), "{said}");
    }
    Ok(())
}

fn describe_and_delete(cluster: &Cluster) -> Result<()> {
    let described = cluster.kubectl(&["describe", "pods", "-l", "app=site"])?;
    for part in ["Scheduled", "Pulled", "Started", "Container ID:", "minik8s://", "QoS Class:"] {
        ensure!(described.contains(part), "no {part} in {described}");
    }
    ensure!(cluster.kubectl(&["describe", "deployment", "site"])?.contains("NewReplicaSetAvailable"));
    ensure!(cluster.kubectl(&["describe", "node", "a"])?.contains("PodCIDR:"));
    let shop =
        include_str!("../../manifests/replication-controller.yaml").replace("nodeSelector:\n        disk: ssd", "");
    cluster.apply(&shop)?;
    cluster.pods_ready("app=shop", 3, seconds(60))?;
    cluster.kubectl(&["delete", "rc", "shop", "--cascade=orphan"])?;
    cluster.kubectl(&["delete", "pods", "-l", "app=shop"])?;
    ensure!(cluster.get("pods -l app=shop")?.is_empty());
    let broken = DEPLOYMENT.replace("image:", "imagee:").replace("name: site", "name: broken");
    let answer = cluster.apply(&broken).map_err(|e| e.to_string());
    ensure!(answer.as_ref().is_err_and(|e| e.contains("spec.template.spec.containers[0].imagee")), "{answer:?}");
    let missing = DEPLOYMENT.replace(", image: 'nginx:latest'", "").replace("name: site", "name: broken");
    let answer = cluster.apply(&missing).map_err(|e| e.to_string());
    ensure!(
        answer.as_ref().is_err_and(|e| e.contains("spec.template.spec.containers[0].image: Required value")),
        "{answer:?}"
    );
    Ok(())
}

/// These bodies come in protobuf.
fn create_by_command(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "team"])?;
    cluster.kubectl(&["-n", "team", "create", "configmap", "settings", "--from-literal=colour=green"])?;
    cluster.kubectl(&["-n", "team", "create", "secret", "generic", "key", "--from-literal=k=v"])?;
    cluster.kubectl(&["-n", "team", "create", "deployment", "web", "--image=nginx:latest", "--replicas=2"])?;
    cluster.kubectl(&["-n", "team", "expose", "deployment", "web", "--port=80"])?;
    cluster.kubectl(&["-n", "team", "wait", "--for=condition=Available", "deployment/web", "--timeout=60s"])?;
    cluster.kubectl(&["-n", "team", "annotate", "deployment", "web", "note=x"])?;
    let web = cluster.get("-n team deployment web")?;
    ensure!(condition(&web[0], "Available") == "True" && web[0]["metadata"]["annotations"]["note"] == "x", "{web:?}");
    ensure!(cluster.kubectl(&["explain", "pod.spec.containers.image"])?.contains("string"));
    ensure!(cluster.kubectl(&["api-resources"])?.contains("deployments"));
    cluster.kubectl(&["delete", "namespace", "team", "--timeout=60s"])?;
    let gone = cluster.kubectl(&["get", "namespace", "team"]).map_err(|e| e.to_string());
    ensure!(gone.as_ref().is_err_and(|e| e.contains("NotFound")), "{gone:?}");
    Ok(())
}
