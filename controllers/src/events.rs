//! Events: what controllers did, told to people. Best effort, and never so many that they become the load.

use std::collections::HashMap;

use client::{Client, object};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::plan::{Note, NoteKind};

/// Events that wait to be written; more of them at a time tell nobody anything.
const WAITING: usize = 1024;

/// One object may bring up this many different events at once, and a further one in each interval.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

/// Objects and events that are remembered, so that a repetition is counted instead of written anew. Past it, all is
/// forgotten at once: the price is one event too many for some.
const REMEMBERED: usize = 4096;

/// An event on its way.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    component: &'static str,
    about: ObjectReference,
    kind: NoteKind,
    reason: &'static str,
    message: String,
}

#[derive(Clone)]
pub struct Recorder {
    to: mpsc::Sender<Said>,
}

impl Recorder {
    /// The recorder, and the work of writing down what it is told: to be run for as long as it is used.
    pub fn new(client: Client) -> (Recorder, impl Future<Output = ()> + Send) {
        let (to, mut from) = mpsc::channel::<Said>(WAITING);
        let write = async move {
            let mut memory = Memory::default();
            while let Some(said) = from.recv().await {
                #[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
                let now = Timestamp::now();
                let Some(entry) = memory.admit(&said, now) else { continue };
                if let Err(error) = write(&client, &said, entry, now).await {
                    tracing::debug!(reason = said.reason, %error, "an event was not written");
                }
            }
        };
        (Recorder { to }, write)
    }

    /// `what` takes the place of `{}` in the note's message.
    pub fn record(&self, component: &'static str, about: &ObjectReference, note: Option<&Note>, what: &str) {
        let Some(note) = note else { return };
        let message = note.message.replace("{}", what);
        let about = about.clone();
        // A full channel loses events, which is the lesser evil.
        let _ = self.to.try_send(Said { component, about, kind: note.kind, reason: note.reason, message });
    }
}

async fn write(client: &Client, said: &Said, entry: Entry, now: Timestamp) -> client::Result<()> {
    let event = event(said, &entry, now);
    if entry.count > 1 {
        let patch = client::Patch::Merge(json!({ "count": entry.count, "lastTimestamp": Time(now) }));
        let (namespace, name) = (object::namespace(&event), object::name(&event));
        match client.patch::<Event>(namespace, name, &patch).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    client.create(&event).await.map(|_| ())
}

fn event(said: &Said, entry: &Entry, now: Timestamp) -> Event {
    let about = &said.about;
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let name = format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), entry.number);
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: about.clone(),
        reason: Some(said.reason.to_owned()),
        message: Some(said.message.clone()),
        type_: Some(if said.kind == NoteKind::Normal { "Normal" } else { "Warning" }.to_owned()),
        source: Some(EventSource { component: Some(said.component.to_owned()), host: None }),
        reporting_component: Some(said.component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(Time(entry.first)),
        last_timestamp: Some(Time(now)),
        count: Some(entry.count),
        ..Event::default()
    }
}

/// What has been said before.
#[derive(Default)]
struct Memory {
    entries: HashMap<(String, &'static str, String), Entry>,
    budgets: HashMap<String, Budget>,
    last: i128,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Sets the event's name apart: nanoseconds, never the same twice.
    number: i128,
    first: Timestamp,
    count: i32,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

impl Memory {
    /// How the event is to be written, or none when the object has said enough for now.
    fn admit(&mut self, said: &Said, now: Timestamp) -> Option<Entry> {
        if self.entries.len() >= REMEMBERED || self.budgets.len() >= REMEMBERED {
            self.entries.clear();
            self.budgets.clear();
        }
        let about = &said.about;
        let uid = about.uid.clone().or_else(|| about.name.clone()).unwrap_or_default();
        let budget = self.budgets.entry(uid.clone()).or_insert(Budget { left: BURST, at: now });
        let passed = now.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed / REFILL_SECONDS).min(BURST);
        budget.at = now;
        if budget.left < 1.0 {
            return None;
        }
        budget.left -= 1.0;
        self.last = now.as_nanosecond().max(self.last + 1);
        let fresh = Entry { number: self.last, first: now, count: 0 };
        let entry = self.entries.entry((uid, said.reason, said.message.clone())).or_insert(fresh);
        entry.count = entry.count.saturating_add(1);
        Some(entry.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn said(name: &str, message: &str) -> Said {
        Said {
            component: "replicaset-controller",
            about: ObjectReference { name: Some(name.into()), uid: Some(name.into()), ..ObjectReference::default() },
            kind: NoteKind::Normal,
            reason: "SuccessfulCreate",
            message: message.into(),
        }
    }

    #[test]
    fn repetitions_are_counted_and_floods_are_cut() {
        let mut memory = Memory::default();
        let counts: Vec<i32> =
            (0..3).filter_map(|_| memory.admit(&said("a", "same"), at(0))).map(|e| e.count).collect();
        assert_eq!(counts, [1, 2, 3]);
        let admitted = (0..100).filter(|i| memory.admit(&said("a", &i.to_string()), at(0)).is_some()).count();
        assert_eq!(admitted, 22);
        assert!(memory.admit(&said("b", "another object"), at(0)).is_some());
        assert!(memory.admit(&said("a", "later"), at(299)).is_none());
        assert!(memory.admit(&said("a", "later"), at(301)).is_some());
    }

    #[test]
    fn names_never_repeat() {
        let mut memory = Memory::default();
        let a = memory.admit(&said("a", "1"), at(0)).expect("an entry");
        let b = memory.admit(&said("a", "2"), at(0)).expect("an entry");
        assert_ne!(a.number, b.number);
        let event = event(&said("a", "1"), &a, at(5));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.count, Some(1));
    }
}
