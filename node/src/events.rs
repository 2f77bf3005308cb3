//! Events: what happened to pods and to the node, for `kubectl describe`.
//!
//! Recording never waits: an event is worth less than the pod it speaks of. What does not fit into the queue is counted
//! and dropped. The same event seen again raises the count of the first one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use client::{Client, Patch};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tokio::sync::mpsc;

use crate::pod::plan::{Note, NoteKind};

/// A burst of 100 pods with ten events each fits.
const QUEUE: usize = 1024;
/// Events remembered for counting; past it, all are forgotten and counting starts afresh.
const REMEMBERED: usize = 4096;
/// A server that is away is asked so often; then the event is dropped.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
struct Entry {
    about: ObjectReference,
    note: Note,
    at: Timestamp,
}

/// A handle for recording. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Gives the handle and the loop that writes, which ends with the last handle.
    pub fn new(client: Client, node: String) -> (Recorder, impl Future<Output = ()> + Send) {
        let (queue, entries) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        (Recorder { queue, dropped: Arc::clone(&dropped) }, write(client, node, entries, dropped))
    }

    pub fn pod(&self, pod: &Pod, note: Note) {
        let meta = &pod.metadata;
        let field = note.container.as_ref().map(|name| {
            let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten()).any(|c| c.name == *name);
            format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" })
        });
        self.record(
            ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: field,
            },
            note,
        );
    }

    pub fn node(&self, name: &str, note: Note) {
        self.record(
            ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(name.to_owned()),
                uid: Some(name.to_owned()),
                ..ObjectReference::default()
            },
            note,
        );
    }

    fn record(&self, about: ObjectReference, note: Note) {
        tracing::debug!(pod = about.name, container = note.container, reason = note.reason, "{}", note.message);
        if self.queue.try_send(Entry { about, note, at: Timestamp::now() }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What makes two events the same.
type Identity = (Option<String>, Option<String>, NoteKind, &'static str, String);

struct Known {
    name: String,
    count: i32,
}

async fn write(client: Client, node: String, mut entries: mpsc::Receiver<Entry>, dropped: Arc<AtomicU64>) {
    let mut known: HashMap<Identity, Known> = HashMap::new();
    while let Some(entry) = entries.recv().await {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events were dropped because the API server takes them too slowly");
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        for attempt in 1..=TRIES {
            match send(&client, &node, &entry, &mut known).await {
                Ok(()) => break,
                Err(error) if error.is_transient() && attempt < TRIES => tokio::time::sleep(RETRY * attempt).await,
                Err(error) => {
                    tracing::debug!(%error, reason = entry.note.reason, "an event could not be written");
                    break;
                }
            }
        }
    }
}

async fn send(
    client: &Client,
    node: &str,
    entry: &Entry,
    known: &mut HashMap<Identity, Known>,
) -> Result<(), client::Error> {
    let namespace = entry.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let note = &entry.note;
    let (about, kind) = (&entry.about, note.kind);
    let identity = (about.uid.clone(), about.field_path.clone(), kind, note.reason, note.message.clone());
    if let Some(first) = known.get_mut(&identity) {
        let count = first.count + 1;
        let patch = Patch::Merge(serde_json::json!({"count": count, "lastTimestamp": Time(entry.at)}));
        match client.patch::<Event>(&namespace, &first.name, &patch).await {
            Ok(_) => {
                first.count = count;
                return Ok(());
            }
            // It has expired: this one begins a new count.
            Err(error) if error.is_not_found() => known.remove(&identity),
            Err(error) => return Err(error),
        };
    }
    let event = build(node, &namespace, entry);
    let name = event.metadata.name.clone().unwrap_or_default();
    match client.create(&event).await {
        Ok(_) => {}
        // A former attempt got through although its answer did not.
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    known.insert(identity, Known { name, count: 1 });
    Ok(())
}

fn build(node: &str, namespace: &str, entry: &Entry) -> Event {
    let about = entry.about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // Two events of one object within a nanosecond are the same event.
            name: Some(format!("{about}.{:x}", entry.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: entry.about.clone(),
        type_: Some(match entry.note.kind {
            NoteKind::Normal => "Normal".to_owned(),
            NoteKind::Warning => "Warning".to_owned(),
        }),
        reason: Some(entry.note.reason.to_owned()),
        message: Some(entry.note.message.clone()),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(entry.at)),
        last_timestamp: Some(Time(entry.at)),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_point_at_the_container() {
        let value = serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "main"}], "initContainers": [{"name": "prepare"}]},
        });
        let pod: Pod = serde_json::from_value(value).expect("a pod");
        let (queue, mut entries) = mpsc::channel(4);
        let recorder = Recorder { queue, dropped: Arc::default() };
        for container in [Some("main"), Some("prepare"), None] {
            let container = container.map(str::to_owned);
            recorder.pod(&pod, Note { kind: NoteKind::Normal, reason: "Started", message: "m".to_owned(), container });
        }
        let mut paths = Vec::new();
        while let Ok(entry) = entries.try_recv() {
            paths.push(build("n1", "ns", &entry).involved_object.field_path);
        }
        let expected = [Some("spec.containers{main}"), Some("spec.initContainers{prepare}"), None];
        assert_eq!(paths, expected.map(|p| p.map(str::to_owned)));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, _entries) = mpsc::channel(1);
        let recorder = Recorder { queue, dropped: Arc::default() };
        for _ in 0..3 {
            let note = Note { kind: NoteKind::Warning, reason: "X", message: "m".to_owned(), container: None };
            recorder.node("n1", note);
        }
        assert_eq!(recorder.dropped.load(Ordering::Relaxed), 2);
    }
}
