//! The loop: changes come in, decisions go out. One task owns the snapshot and the queue.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use client::{Cache, Change, Client, Key, Update, object, pod::Pod};
use k8s_openapi::api::core::v1::Node;
use tokio::task::JoinSet;

use crate::{
    cycle::{Cursor, Decision, decide},
    pod::{PodInfo, is_finished, is_waiting},
    queue::Queue,
    report::Reporter,
    snapshot::{NodeChange, NodeFacts, Snapshot},
};

/// The name that a pod's `schedulerName` must have, or be without one.
pub const SCHEDULER: &str = "default-scheduler";

/// Enough to keep the store's batches full; more would only decide on older snapshots.
const BINDINGS_AT_ONCE: usize = 128;

/// Decisions between two looks at what has changed.
const DECISIONS_A_TURN: usize = 64;

/// Nothing is due for as long as this: the loop is woken by what comes in.
const FAR: Duration = Duration::from_secs(3600);

/// Schedules pods until dropped.
pub async fn run(client: Client) {
    let (pods, nodes) = (client.cache::<Pod>(), client.cache::<Node>());
    let (mut pod_changes, mut node_changes) = (pods.subscribe(), nodes.subscribe());
    tokio::join!(pods.synced(), nodes.synced());

    let reporter = Reporter::default();
    let mut reports = JoinSet::new();
    reports.spawn(reporter.clone().write(client.clone()));

    let mut shell = Shell::new(client, pods, nodes, reporter);
    shell.resync();
    loop {
        shell.decide_some();
        let due = shell.queue.due(now());
        tokio::select! {
            biased;
            Some(update) = node_changes.next() => shell.node_update(update),
            Some(update) = pod_changes.next() => shell.pod_update(update),
            Some(done) = shell.bindings.join_next() => shell.bound(done),
            () = std::future::ready(()), if shell.can_decide() => tokio::task::yield_now().await,
            () = tokio::time::sleep_until(due.unwrap_or_else(|| now() + FAR).into()) => {}
        }
    }
}

struct Shell {
    client: Client,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    reporter: Reporter,
    snapshot: Snapshot,
    queue: Queue,
    cursor: Cursor,
    // Invariant: a pod is in `assumed` from the decision until the cache shows its node or the binding failed, and
    // while it is there it counts on its node in the snapshot.
    assumed: HashMap<Key, PodInfo>,
    bindings: JoinSet<Binding>,
    /// What was last said of a pod that waits, so that it is not said again.
    said: HashMap<Key, String>,
}

struct Binding {
    pod: PodInfo,
    result: client::Result<()>,
}

impl Shell {
    fn new(client: Client, pods: Arc<Cache<Pod>>, nodes: Arc<Cache<Node>>, reporter: Reporter) -> Shell {
        Shell {
            client,
            pods,
            nodes,
            reporter,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            cursor: Cursor::default(),
            assumed: HashMap::new(),
            bindings: JoinSet::new(),
            said: HashMap::new(),
        }
    }

    fn can_decide(&self) -> bool {
        self.queue.has_ready() && self.bindings.len() < BINDINGS_AT_ONCE
    }

    fn decide_some(&mut self) {
        for _ in 0..DECISIONS_A_TURN {
            if !self.can_decide() {
                return;
            }
            let Some(pod) = self.queue.pop() else { return };
            let _span = tracing::debug_span!("cycle", pod = %pod.key).entered();
            match decide(&self.snapshot, &pod, &mut self.cursor) {
                Decision::Node(node) => self.bind(pod, node),
                Decision::Unschedulable(why) => self.unschedulable(pod, why),
            }
        }
    }

    fn bind(&mut self, mut pod: PodInfo, node: String) {
        tracing::debug!(%node, "bind");
        pod.node = Some(node.clone());
        self.snapshot.set_pod(pod.clone());
        self.assumed.insert(pod.key.clone(), pod.clone());
        let client = self.client.clone();
        self.bindings.spawn(async move {
            let result = client.bind(&pod.key.namespace, &pod.key.name, &node).await;
            Binding { pod, result }
        });
    }

    fn unschedulable(&mut self, pod: PodInfo, why: String) {
        tracing::debug!(%why, "unschedulable");
        self.queue.park(&pod.key);
        if self.said.get(&pod.key) != Some(&why) {
            self.said.insert(pod.key.clone(), why.clone());
            self.reporter.unschedulable(pod, why);
        }
    }

    fn bound(&mut self, done: Result<Binding, tokio::task::JoinError>) {
        // Which binding panicked is not known: all are forgotten, and those that succeed after all will be seen to.
        let Ok(Binding { pod, result }) = done else {
            self.assumed.clear();
            return self.resync();
        };
        let node = pod.node.clone().unwrap_or_default();
        match result {
            Ok(()) => self.reporter.bound(pod, &node),
            Err(error) => {
                tracing::debug!(pod = %pod.key, %node, %error, "the binding failed");
                if self.assumed.remove(&pod.key).is_some() {
                    self.snapshot.remove_pod(&pod.key);
                    self.queue.wake();
                }
                if error.is_not_found() {
                    self.queue.forget(&pod.key);
                } else {
                    self.queue.retry(&pod.key, now());
                }
            }
        }
    }

    fn node_update(&mut self, update: Update<Node>) {
        let Update::Change(change) = update else { return self.resync() };
        let Change { key, new, .. } = &*change;
        let relevant = match new {
            Some(node) => self.snapshot.set_node(NodeFacts::new(node)),
            None => {
                self.snapshot.remove_node(&key.name);
                // The reasons of pods that wait name fewer nodes now.
                NodeChange::Relevant
            }
        };
        if relevant == NodeChange::Relevant {
            self.queue.wake();
        }
    }

    fn pod_update(&mut self, update: Update<Pod>) {
        let Update::Change(change) = update else { return self.resync() };
        match &change.new {
            Some(pod) => self.observe(pod),
            None => self.gone(&change.key),
        }
    }

    fn observe(&mut self, pod: &Pod) {
        if is_finished(pod) {
            return self.gone(&Key::of(pod));
        }
        let info = PodInfo::new(pod);
        if info.node.is_some() {
            self.assumed.remove(&info.key);
            self.said.remove(&info.key);
            self.queue.forget(&info.key);
            self.snapshot.set_pod(info);
        } else if !is_waiting(pod, SCHEDULER) {
            self.gone(&info.key);
        } else if self.assumed.get(&info.key).is_none_or(|assumed| assumed.uid != info.uid) {
            self.queue.offer(info);
        }
    }

    fn gone(&mut self, key: &Key) {
        self.assumed.remove(key);
        self.said.remove(key);
        self.queue.forget(key);
        if self.snapshot.remove_pod(key) == NodeChange::Relevant {
            self.queue.wake();
        }
    }

    /// Starts over from the caches, keeping only what is under way.
    fn resync(&mut self) {
        self.snapshot = Snapshot::default();
        self.queue = Queue::default();
        for node in self.nodes.list() {
            self.snapshot.set_node(NodeFacts::new(&node));
        }
        let pods = self.pods.list();
        let exists = |key: &Key| self.pods.by_key(key).is_some_and(|pod| !object::is_deleting(&*pod));
        self.assumed.retain(|key, _| exists(key));
        self.said.retain(|key, _| exists(key));
        for info in self.assumed.values() {
            self.snapshot.set_pod(info.clone());
        }
        for pod in pods {
            self.observe(&pod);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell is where time comes in")]
fn now() -> Instant {
    Instant::now()
}
