//! The events of a watch as responses: filtered, several revisions in one, and one in several where the client allows it.

use prost::Message;

use super::Options;
use crate::{
    Batch, EventKind, Revision,
    etcd::{
        Api,
        grpc::MAX_REQUEST,
        kv::key_value,
        messages::{
            KeyValue,
            watch::{Event, WatchResponse},
        },
    },
};

/// Enough for one response: a watch that has much to catch up with sends more of them.
const ENOUGH_EVENTS: usize = 1000;
const ENOUGH_BYTES: usize = 1 << 20;

/// Whole revisions, in order.
#[derive(Default)]
pub struct Events {
    events: Vec<Event>,
    bytes: usize,
    revision: Revision,
}

impl Events {
    pub fn add(&mut self, batch: &Batch, options: &Options) {
        self.revision = batch.revision;
        for event in &batch.events {
            let (wanted, kind) = match event.kind {
                EventKind::Put => (options.puts, 0),
                EventKind::Delete => (options.deletes, 1),
            };
            if !wanted {
                continue;
            }
            let kv = match event.kind {
                EventKind::Put => key_value(&event.kv),
                // A delete says no more than what, and when.
                EventKind::Delete => KeyValue {
                    key: event.kv.key.clone(),
                    mod_revision: event.kv.mod_revision as i64,
                    ..KeyValue::default()
                },
            };
            let prev_kv = event.previous.as_ref().filter(|_| options.previous).map(|kv| key_value(kv));
            let event = Event { kind, kv: Some(kv), prev_kv };
            self.bytes += event.encoded_len();
            self.events.push(event);
        }
    }

    pub fn is_full(&self) -> bool {
        self.events.len() >= ENOUGH_EVENTS || self.bytes >= ENOUGH_BYTES
    }

    /// One response, or none where nothing was wanted; more only where the client puts fragments together.
    pub fn responses(self, api: &Api, options: &Options) -> Vec<WatchResponse> {
        if self.events.is_empty() {
            return Vec::new();
        }
        let response = |events| WatchResponse {
            header: api.header(self.revision),
            watch_id: options.id,
            events,
            ..WatchResponse::default()
        };
        if !options.fragment || self.bytes < MAX_REQUEST {
            return vec![response(self.events)];
        }
        let mut responses = vec![response(Vec::new())];
        let mut bytes = 0;
        for event in self.events {
            let size = event.encoded_len();
            if let Some(last) = responses.last_mut()
                && bytes + size >= MAX_REQUEST
                && !last.events.is_empty()
            {
                last.fragment = true;
                responses.push(response(Vec::new()));
                bytes = 0;
            }
            bytes += size;
            if let Some(last) = responses.last_mut() {
                last.events.push(event);
            }
        }
        responses
    }
}
