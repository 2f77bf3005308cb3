//! Carrying out single actions of a plan. Each is a future of its own and ends in an [`Outcome`] for the worker.

use std::{io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    error_text as chain, fetch,
    plan::{Note, NoteKind},
    spec::{self, Parts, TERMINATION_LOG},
};
use crate::{
    context::Context,
    env::{self, Sources},
    image::{Image, ImageError, PullPolicy},
    netfiles,
    probe::check,
    runtime::{self, ContainerId, ContainerState, RunState},
    volumes::{self, PreparedVolumes},
};

/// What a container may say at its end.
const MESSAGE_MAX: u64 = 4096;
/// And how much of its log is taken where it says nothing.
const MESSAGE_FROM_LOG: u64 = 2048;
/// A post-start hook has no limit of its own; a container whose hook takes longer is beyond help.
const POST_START_MAX: Duration = Duration::from_secs(600);

/// How an action ended.
pub enum Outcome {
    Volumes(Result<Ready, String>),
    Sandbox(Result<Vec<IpAddr>, String>),
    Image {
        container: String,
        result: Result<Image, ImageError>,
    },
    Started {
        container: String,
        attempt: u32,
        result: Result<(), StartFailure>,
    },
    PreStopDone {
        container: String,
        attempt: u32,
    },
    Signalled,
    /// Whether the sandbox is there.
    Checked {
        alive: bool,
    },
    TornDown(Result<(), String>),
    Looked(Result<Vec<Seen>, runtime::Error>),
    /// The revision of what was written.
    Written(Result<u64, client::Error>),
}

/// Volumes in place, and what they and the containers' environments were made from.
pub struct Ready {
    pub prepared: PreparedVolumes,
    pub tokens: fetch::Tokens,
    pub sources: Arc<Sources>,
}

/// A container with its last words.
pub struct Seen {
    pub state: ContainerState,
    pub message: Option<String>,
}

pub enum StartFailure {
    /// Nothing was started; `reason` is what the waiting state shows.
    Retry { reason: &'static str, message: String },
    /// The command could not be started: the container counts as ended with code 128.
    Dead(String),
    /// It runs, but its post-start hook failed.
    Hook(String),
    /// The sandbox is not there any more.
    NoSandbox,
}

pub fn note(kind: NoteKind, reason: &'static str, message: String, container: Option<&str>) -> Note {
    Note { kind, reason, message, container: container.map(str::to_owned) }
}

/// Runs something that blocks; a panic in it becomes an error like any other.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(format!("internal error: {error}")),
    }
}

/// The pod's sources of configuration as of now.
async fn sources(context: &Context, pod: &Pod, tokens: &mut fetch::Tokens) -> Result<Sources, String> {
    let got = fetch::sources(&context.client, pod, context.services.list(), context.node.clone(), tokens).await;
    got.map_err(|error| chain(&error))
}

pub async fn volumes(context: Arc<Context>, pod: Arc<Pod>, mut tokens: fetch::Tokens) -> Outcome {
    let work = async {
        let sources = Arc::new(sources(&context, &pod, &mut tokens).await?);
        let dir = context.paths.pod(uid(&pod)).map_err(|error| error.to_string())?;
        let from = Arc::clone(&sources);
        let prepared = blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|error| format!("create {}: {error}", dir.display()))?;
            volumes::prepare(&dir, &pod, &from).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Ready { prepared, tokens, sources })
    };
    Outcome::Volumes(work.await)
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether something of a former sandbox may be in the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    None,
    Perhaps,
}

pub async fn sandbox(context: Arc<Context>, pod: Arc<Pod>, remains: Remains) -> Outcome {
    let work = async {
        let uid = uid(&pod);
        if remains == Remains::Perhaps {
            clear(&context, uid).await?;
        }
        let log_dir = context.paths.pod_logs(&pod).map_err(|error| error.to_string())?;
        let spec = spec::sandbox(&pod, log_dir);
        let sandbox = context.runtime.create_sandbox(&spec).await.map_err(|error| chain(&error))?;
        match sandbox.netns {
            Some(netns) => Ok(vec![context.network.attach(netns, uid.to_owned()).await?]),
            None => Ok(context.node.ips.iter().filter_map(|ip| ip.parse().ok()).collect()),
        }
    };
    let result: Result<Vec<IpAddr>, String> = work.await;
    if let Err(error) = &result {
        let message = format!("Failed to create pod sandbox: {error}");
        context.events.pod(&pod, note(NoteKind::Warning, "FailedCreatePodSandBox", message, None));
    }
    Outcome::Sandbox(result)
}

async fn clear(context: &Context, uid: &str) -> Result<(), String> {
    context.runtime.remove_sandbox(uid).await.map_err(|error| chain(&error))?;
    context.network.detach(uid.to_owned()).await
}

pub async fn teardown(context: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    let work = async {
        clear(&context, uid(&pod)).await?;
        let dir = context.paths.pod(uid(&pod)).map_err(|error| error.to_string())?;
        // The checkpoint stays until the object is gone; volumes go with the containers.
        blocking(move || {
            ["volumes", "subpaths", "containers"]
                .iter()
                .try_for_each(|part| volumes::remove(&dir.join(part)))
                .map_err(|error| format!("remove the pod's volumes: {error}"))
        })
        .await
    };
    Outcome::TornDown(work.await)
}

pub async fn pull(context: Arc<Context>, pod: Arc<Pod>, container: Container) -> Outcome {
    let name = container.name.clone();
    let image = container.image.clone().unwrap_or_default();
    let policy = match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None if image.ends_with(":latest") => PullPolicy::Always,
        None => PullPolicy::IfNotPresent,
    };
    let event = |kind, reason, message| context.events.pod(&pod, note(kind, reason, message, Some(&name)));
    if policy != PullPolicy::Always
        && let Some(found) = context.runtime.image(&image)
    {
        let message = format!("Container image {image:?} already present on machine");
        event(NoteKind::Normal, "Pulled", message);
        return Outcome::Image { container: name.clone(), result: Ok(found) };
    }
    let auth = match policy {
        PullPolicy::Never => None,
        PullPolicy::Always | PullPolicy::IfNotPresent => {
            event(NoteKind::Normal, "Pulling", format!("Pulling image {image:?}"));
            fetch::pull_auth(&context.client, &pod, &image).await
        }
    };
    let begun = tokio::time::Instant::now();
    let result = context.runtime.pull(&image, auth, policy).await;
    match &result {
        Ok(found) => {
            let took = begun.elapsed().as_millis();
            let message = format!("Successfully pulled image {image:?} in {took}ms. Image size: {} bytes.", found.size);
            event(NoteKind::Normal, "Pulled", message);
        }
        Err(error) => {
            let message = format!("Failed to pull image {image:?}: {}", chain(error));
            event(NoteKind::Warning, "Failed", message);
        }
    }
    Outcome::Image { container: name.clone(), result }
}

/// All that starting a container needs.
pub struct Start {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub attempt: u32,
    pub image: String,
    pub prepared: PreparedVolumes,
    /// What the environment is made from while no API server answers.
    pub known: Arc<Sources>,
    pub ips: Vec<IpAddr>,
    /// The attempt before, which has ended and is in the way.
    pub former: Option<u32>,
}

pub async fn start(context: Arc<Context>, start: Start, started: impl FnOnce() + Send) -> Outcome {
    let (container, attempt) = (start.container.name.clone(), start.attempt);
    let result = launch(&context, &start, started).await;
    let event = |kind, reason, message| context.events.pod(&start.pod, note(kind, reason, message, Some(&container)));
    match &result {
        Ok(()) | Err(StartFailure::NoSandbox) => {}
        Err(StartFailure::Retry { message, .. }) => {
            event(NoteKind::Warning, "Failed", format!("Error: {message}"));
        }
        Err(StartFailure::Dead(message)) => event(NoteKind::Warning, "Failed", format!("Error: {message}")),
        Err(StartFailure::Hook(message)) => {
            event(NoteKind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {message}"));
        }
    }
    Outcome::Started { container, attempt, result }
}

async fn launch(context: &Context, start: &Start, started: impl FnOnce() + Send) -> Result<(), StartFailure> {
    let config = |message: String| StartFailure::Retry { reason: "CreateContainerConfigError", message };
    let name = &start.container.name;
    let id = |attempt| ContainerId { pod_uid: uid(&start.pod).to_owned(), name: name.clone(), attempt };
    if let Some(former) = start.former {
        // Its log stays. A failure leaves a directory that goes with the sandbox.
        if let Err(error) = context.runtime.remove(&id(former)).await {
            tracing::debug!(pod = uid(&start.pod), container = name, %error, "a former attempt stays behind");
        }
    }
    let parts = parts(context, start).await.map_err(config)?;
    let spec = spec::container(&start.pod, &start.container, parts).map_err(|error| config(error.to_string()))?;
    let permit = context.starts.acquire().await;
    let created = context.runtime.create_container(&spec).await;
    let id = created.map_err(|error| match error {
        runtime::Error::NoSandbox { .. } => StartFailure::NoSandbox,
        runtime::Error::Invalid { .. } => config(chain(&error)),
        error => StartFailure::Retry { reason: "CreateContainerError", message: chain(&error) },
    })?;
    let event = |reason, message| context.events.pod(&start.pod, note(NoteKind::Normal, reason, message, Some(name)));
    event("Created", format!("Container created: {name}"));
    context.runtime.start(&id).await.map_err(|error| match error {
        runtime::Error::NoSandbox { .. } => StartFailure::NoSandbox,
        error => StartFailure::Dead(chain(&error)),
    })?;
    drop(permit);
    event("Started", format!("Container started: {name}"));
    started();
    match start.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
        Some(hook) => {
            let ip = start.ips.first().copied();
            run_hook(context, hook, &start.container, &id, ip, POST_START_MAX).await.map_err(StartFailure::Hook)
        }
        None => Ok(()),
    }
}

/// Environment, mounts and files of a container.
async fn parts(context: &Context, start: &Start) -> Result<Parts, String> {
    let mut tokens = fetch::Tokens::new();
    let (maps, secrets) = env::references(&start.container);
    // Nothing to fetch is the common case, and then no request is made.
    let sources = if maps.is_empty() && secrets.is_empty() {
        Sources { services: context.services.list(), node: context.node.clone(), ..Sources::default() }
    } else {
        let mut only = (*start.pod).clone();
        if let Some(spec) = &mut only.spec {
            spec.volumes = None;
            spec.init_containers = None;
            spec.containers = vec![start.container.clone()];
        }
        match fetch::sources(&context.client, &only, context.services.list(), context.node.clone(), &mut tokens).await {
            Ok(sources) => sources,
            Err(error) => {
                tracing::debug!(pod = uid(&start.pod), %error, "starting with the configuration known from before");
                (*start.known).clone()
            }
        }
    };
    let ips: Vec<String> = start.ips.iter().map(ToString::to_string).collect();
    let env = env::environment(&start.pod, &start.container, &sources, &ips).map_err(|error| error.to_string())?;
    let paths = context.paths.clone();
    let name = &start.container.name;
    let log_path = paths.container_log(&start.pod, name, start.attempt).map_err(|error| error.to_string())?;
    let message = paths.termination_log(uid(&start.pod), name, start.attempt).map_err(|error| error.to_string())?;
    let dir = paths.pod(uid(&start.pod)).map_err(|error| error.to_string())?;
    let (pod, container, prepared) = (Arc::clone(&start.pod), start.container.clone(), start.prepared.clone());
    let (dns, log, environment) = (context.dns.clone(), log_path.clone(), env.clone());
    let mounts = blocking(move || {
        let files = |error: io::Error| format!("prepare the container's files: {error}");
        log.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(files)?;
        let mut mounts = volumes::mounts(&dir, &prepared, &container, &environment).map_err(|e| e.to_string())?;
        let managed = write_files(&dir, &pod, &ips, &dns).map_err(files)?;
        for (host_path, at) in managed {
            mounts.extend(spec::managed_file(&container, host_path, at));
        }
        message.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(files)?;
        write_if_changed(&message, "", 0o666).map_err(files)?;
        let at =
            container.termination_message_path.as_deref().filter(|p| p.starts_with('/')).unwrap_or(TERMINATION_LOG);
        mounts.extend(spec::managed_file(&container, message, at));
        Ok(mounts)
    })
    .await?;
    let (attempt, image, node_memory) = (start.attempt, start.image.clone(), context.node_memory);
    Ok(Parts { attempt, image, env, mounts, log_path, node_memory })
}

/// Writes the files that the node manages for the pod, and says where they are seen.
fn write_files(
    dir: &Path,
    pod: &Pod,
    ips: &[String],
    dns: &netfiles::ClusterDns,
) -> io::Result<[(std::path::PathBuf, &'static str); 3]> {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let of_node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hosts = if host_network {
        netfiles::hosts_of_node(pod, &of_node("/etc/hosts"))
    } else {
        netfiles::hosts(pod, ips, &dns.domain)
    };
    let files = [(dir.join("etc-hosts"), "/etc/hosts"), (dir.join("resolv.conf"), "/etc/resolv.conf")];
    write_if_changed(&files[0].0, &hosts, 0o644)?;
    write_if_changed(&files[1].0, &netfiles::resolv_conf(pod, dns, &of_node("/etc/resolv.conf")), 0o644)?;
    let hostname = dir.join("hostname");
    let name = if host_network { of_node("/etc/hostname") } else { format!("{}\n", netfiles::hostname(pod)) };
    write_if_changed(&hostname, &name, 0o644)?;
    let [hosts, resolv] = files;
    Ok([hosts, resolv, (hostname, "/etc/hostname")])
}

/// Files that containers have mounted are written in place, and only when they differ.
fn write_if_changed(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Runs a lifecycle hook.
pub async fn run_hook(
    context: &Context,
    hook: &LifecycleHandler,
    container: &Container,
    id: &ContainerId,
    ip: Option<IpAddr>,
    within: Duration,
) -> Result<(), String> {
    let work = async {
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            return check::command_succeeds(context.runtime.as_ref(), id, &command, within).await;
        }
        if let Some(get) = &hook.http_get {
            return check::http_get(get, container, ip, within).await;
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        Err("the hook names no action that this node knows".to_owned())
    };
    tokio::time::timeout(within, work).await.unwrap_or_else(|_| Err(format!("no end within {within:?}")))
}

pub struct Stop {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub id: ContainerId,
    pub ip: Option<IpAddr>,
    pub within: Duration,
}

pub async fn pre_stop(context: Arc<Context>, stop: Stop) -> Outcome {
    let name = stop.container.name.clone();
    if let Some(hook) = stop.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && let Err(message) = run_hook(&context, hook, &stop.container, &stop.id, stop.ip, stop.within).await
    {
        let message = format!("PreStopHook failed: {message}");
        context.events.pod(&stop.pod, note(NoteKind::Warning, "FailedPreStopHook", message, Some(&name)));
    }
    Outcome::PreStopDone { container: name, attempt: stop.id.attempt }
}

pub async fn signal(context: Arc<Context>, id: ContainerId, signal: i32) -> Outcome {
    if let Err(error) = context.runtime.signal(&id, signal).await {
        // The plan kills again, and the loss of a shim is told by an event of the runtime.
        tracing::warn!(pod = id.pod_uid, container = id.name, signal, error = chain(&error), "a signal got lost");
    }
    Outcome::Signalled
}

/// Whether the sandbox that was reported lost is. A runtime that does not answer has lost nothing yet.
pub async fn check(context: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    let alive = match context.runtime.sandboxes().await {
        Ok(all) => all.iter().any(|s| s.uid == uid(&pod) && s.state == runtime::SandboxState::Ready),
        Err(error) => {
            tracing::warn!(pod = uid(&pod), error = chain(&error), "the pod's sandbox cannot be looked for");
            true
        }
    };
    Outcome::Checked { alive }
}

/// What the runtime has of the pod, with the last words of containers that have ended.
pub async fn look(context: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    let states = match context.runtime.status(uid(&pod)).await {
        Ok(states) => states,
        Err(error) => return Outcome::Looked(Err(error)),
    };
    let mut out = Vec::with_capacity(states.len());
    for state in states {
        let message = match &state.state {
            RunState::Exited(exit) => last_words(&context, &pod, &state, exit.code).await,
            RunState::Created | RunState::Running { .. } => None,
        };
        out.push(Seen { state, message });
    }
    Outcome::Looked(Ok(out))
}

async fn last_words(context: &Context, pod: &Pod, state: &ContainerState, code: i32) -> Option<String> {
    let path = context.paths.termination_log(uid(pod), &state.name, state.attempt).ok()?;
    let text = tail(&path, MESSAGE_MAX).await.unwrap_or_default();
    if !text.is_empty() {
        return Some(text);
    }
    let spec = pod.spec.as_ref()?;
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let policy = all.find(|c| c.name == state.name)?.termination_message_policy.as_deref();
    if policy != Some("FallbackToLogsOnError") || code == 0 {
        return None;
    }
    let log = context.paths.container_log(pod, &state.name, state.attempt).ok()?;
    let raw = tail(&log, 2 * MESSAGE_FROM_LOG).await.ok()?;
    let lines: Vec<&str> = raw.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let text = lines.join("\n");
    let from = text.len().saturating_sub(usize::try_from(MESSAGE_FROM_LOG).unwrap_or(usize::MAX));
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    Some(text[from..].to_owned()).filter(|t| !t.is_empty())
}

/// The end of a file.
async fn tail(path: &Path, most: u64) -> io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(most))).await?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Milliseconds between two instants that may be the wrong way round.
pub fn until(deadline: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(now)).unwrap_or(Duration::ZERO)
}
