//! Watch: the state as it is, if asked for, and then every change, as one line of JSON each.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{status::Status, table::Header};
use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::{Batch, Event, EventKind, KeyValue, WatchError, Watcher};
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use super::Call;
use crate::{
    App, clock, entropy,
    filter::Filter,
    negotiate::Shape,
    objects::store_failure,
    options::{self, At, Bookmarks, StateEnd, WatchStart},
    present::{self, View},
    stored,
};

/// Bookmarks come about once a minute.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a watch lasts whose client does not say: between one and two times this, so that clients that came
/// together do not come back together.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The longest that a client may ask for.
const MAX_TIMEOUT_SECONDS: u64 = 24 * 3600;
/// Bytes of the initial state that are encoded at a time.
const FRAME: usize = 64 << 10;
/// Batches that are ready at once and go out in one frame.
const MAX_BATCHES: usize = 64;
/// Marks the bookmark after which a client has seen the whole state.
const INITIAL_END: &str = "k8s.io/initial-events-end";

pub async fn watch(call: Call) -> Result<Response<Body>, Status> {
    let view = call.view()?;
    let filter = Filter::parse(&call.target, &call.query)?;
    let options = options::watch(&call.query)?;
    let app = &call.app;
    let (backlog, end, seen) = match options.start {
        WatchStart::State { at, end } => {
            let snapshot = app.snapshot(at).await?;
            let items = snapshot.range(&filter.range.start, &filter.range.end);
            (filter.shown(&app.parsed, items).collect::<Result<_, _>>()?, end, snapshot.revision())
        }
        WatchStart::After(revision) => {
            app.snapshot(At::NotOlderThan(revision)).await?;
            (Vec::new(), StateEnd::Silent, revision)
        }
        WatchStart::Now => (Vec::new(), StateEnd::Silent, app.snapshot(At::Latest).await?.revision()),
    };
    let range = &filter.range;
    let watcher = match app.store.watch(range.start.clone(), range.end.clone(), seen + 1) {
        Ok(watcher) => watcher,
        // Clients expect this one inside of the stream.
        Err(error @ store::Error::Compacted { .. }) => {
            let line = error_line(&store_failure(error));
            return Ok(present::bytes(StatusCode::OK, "application/json", line));
        }
        Err(error) => return Err(store_failure(error)),
    };
    let lasts = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(MAX_TIMEOUT_SECONDS)),
        _ => DEFAULT_TIMEOUT + Duration::from_secs(entropy::number() % DEFAULT_TIMEOUT.as_secs()),
    };
    let now = clock::instant();
    let stream = Stream {
        encoder: Encoder { app: app.clone(), view, filter, header: Header::Show },
        watcher,
        state: Some(State { items: backlog.into_iter(), end, revision: seen }),
        bookmarks: options.bookmarks,
        deadline: now + lasts,
        timer: Box::pin(sleep_until((now + BOOKMARK_INTERVAL).min(now + lasts))),
        stop: Box::pin(stopping(app.stop.clone())),
        ended: false,
    };
    let frames = futures_util::stream::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Some((Ok::<_, Infallible>(frame), stream))
    });
    Ok(present::bytes(StatusCode::OK, "application/json", Body::from_stream(frames)))
}

/// The objects that were there at the start, as far as they have not been sent.
struct State {
    items: std::vec::IntoIter<Arc<KeyValue>>,
    end: StateEnd,
    revision: u64,
}

struct Stream {
    encoder: Encoder,
    watcher: Watcher,
    state: Option<State>,
    bookmarks: Bookmarks,
    deadline: Instant,
    /// For the next bookmark or the deadline, whichever comes first.
    timer: Pin<Box<Sleep>>,
    /// Resolves when the server stops. Made once: to ask anew at each event would cost a lock that all watches share.
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

async fn stopping(mut stop: watch::Receiver<bool>) {
    // A sender that is gone is a server that is gone.
    let _ = stop.wait_for(|stopping| *stopping).await;
}

/// Why a waiting watch goes on.
enum Wake {
    Batch(Result<Arc<Batch>, WatchError>),
    Timer,
    Stop,
}

impl Stream {
    /// The next piece of the answer; none ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(frame) = self.state_frame() {
            return Some(frame);
        }
        loop {
            let wake = tokio::select! {
                biased;
                batch = self.watcher.next() => Wake::Batch(batch),
                () = &mut self.timer => Wake::Timer,
                () = &mut self.stop => Wake::Stop,
            };
            match wake {
                Wake::Batch(Ok(batch)) => {
                    let frame = self.gather(&batch);
                    if !frame.is_empty() {
                        return Some(frame);
                    }
                }
                Wake::Batch(Err(error)) => return self.watch_error(&error),
                Wake::Timer => {
                    let now = clock::instant();
                    self.ended = now >= self.deadline;
                    self.timer.as_mut().reset((now + BOOKMARK_INTERVAL).min(self.deadline));
                    if self.bookmarks == Bookmarks::Send {
                        return Some(self.encoder.bookmark(self.watcher.progress(), StateEnd::Silent));
                    }
                    if self.ended {
                        return None;
                    }
                }
                Wake::Stop => return None,
            }
        }
    }

    fn state_frame(&mut self) -> Option<Bytes> {
        let state = self.state.as_mut()?;
        let mut out = Vec::new();
        for kv in state.items.by_ref() {
            self.encoder.event(&mut out, "ADDED", &kv.value, kv.mod_revision);
            if out.len() >= FRAME {
                return Some(out.into());
            }
        }
        if state.end == StateEnd::Bookmark {
            out.extend_from_slice(&self.encoder.bookmark(state.revision, StateEnd::Bookmark));
        }
        self.state = None;
        (!out.is_empty()).then(|| out.into())
    }

    /// A batch, and what is already waiting behind it, so that a burst is one write to the socket.
    fn gather(&mut self, batch: &Arc<Batch>) -> Bytes {
        let first = self.frame(batch);
        let mut more: Vec<u8> = Vec::new();
        for _ in 0..MAX_BATCHES {
            if self.ended {
                break;
            }
            // An error comes again at the next call, when what came before it has been sent.
            let Ok(Some(batch)) = self.watcher.try_next() else { break };
            let frame = self.frame(&batch);
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&frame);
        }
        if more.is_empty() { first } else { more.into() }
    }

    /// A batch that cannot be read ends the watch. Clients list anew after a 410, and no other code: then they are told
    /// what is wrong, or it is gone.
    fn frame(&mut self, batch: &Arc<Batch>) -> Bytes {
        self.encoder.frame(batch).unwrap_or_else(|status| {
            self.ended = true;
            error_line(&Status::expired(format!("the watch has to start over: {}", status.message)))
        })
    }

    fn watch_error(&mut self, error: &WatchError) -> Option<Bytes> {
        self.ended = true;
        match error {
            WatchError::Slow { .. } | WatchError::Compacted { .. } => {
                Some(error_line(&Status::expired(format!("the watch has to start over: {error}"))))
            }
            WatchError::Closed => None,
        }
    }
}

/// The type of an event, and what of the store it shows.
type Seen<'a> = (&'static str, &'a Arc<KeyValue>);

/// From changes in the store to lines of the answer.
struct Encoder {
    app: Arc<App>,
    view: View,
    filter: Filter,
    /// A table names its columns in the first event only.
    header: Header,
}

impl Encoder {
    /// A batch as lines. Those who watch alike share one copy of them.
    fn frame(&mut self, batch: &Arc<Batch>) -> Result<Bytes, Status> {
        // A table's first event differs from those that follow.
        if !self.view.is_plain() {
            return self.lines(batch);
        }
        let app = self.app.clone();
        app.frames.get(batch, &self.filter.text.clone(), || self.lines(batch))
    }

    fn lines(&mut self, batch: &Batch) -> Result<Bytes, Status> {
        let app = self.app.clone();
        let mut out = Vec::new();
        for event in &batch.events {
            if let Some((kind, kv)) = self.seen(event)? {
                self.event(&mut out, kind, &app.store.shared(kv)?.value, event.kv.mod_revision);
            }
        }
        Ok(out.into())
    }

    /// What a change looks like through the selector: objects come and go as they begin and cease to match.
    fn seen<'a>(&self, event: &'a Event) -> Result<Option<Seen<'a>>, Status> {
        let matching = |kv: &'a Arc<KeyValue>| {
            if self.filter.is_everything() {
                return Ok(Some(kv));
            }
            let plain = self.app.store.shared(kv)?;
            Ok::<_, Status>(self.filter.matches(&self.app.parsed, &plain.value, kv.mod_revision).then_some(kv))
        };
        let before = event.previous.as_ref().map(matching).transpose()?.flatten();
        let put = (event.kind == EventKind::Put).then_some(&event.kv);
        let after = put.map(matching).transpose()?.flatten();
        Ok(match (before, after) {
            (None, Some(after)) => Some(("ADDED", after)),
            (Some(_), Some(after)) => Some(("MODIFIED", after)),
            (Some(before), None) => Some(("DELETED", before)),
            (None, None) => None,
        })
    }

    fn event(&mut self, out: &mut Vec<u8>, kind: &str, value: &Bytes, revision: u64) {
        if self.view.is_plain() {
            out.reserve(value.len() + stored::SPLICE + 64);
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(kind.as_bytes());
            out.extend_from_slice(b"\",\"object\":");
            stored::splice(out, value, revision);
            out.extend_from_slice(b"}\n");
            return;
        }
        let object = self.app.parsed.get(value, revision);
        let shown = self.view.shape(&object, self.header);
        self.header = Header::Omit;
        out.extend_from_slice(&line(kind, &shown));
    }

    fn bookmark(&self, revision: u64, end: StateEnd) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if end == StateEnd::Bookmark {
            metadata["annotations"] = json!({INITIAL_END: "true"});
        }
        let object = match self.view.form.shape {
            Shape::Object => {
                json!({"kind": self.view.kind.kind, "apiVersion": self.view.kind.api_version(), "metadata": metadata})
            }
            Shape::Partial(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
            }
            Shape::Table(version) => json!({
                "kind": "Table", "apiVersion": version.api_version(), "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": [],
                "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata}}],
            }),
        };
        line("BOOKMARK", &object).into()
    }
}

/// Batches on their way to watchers, as lines: each is filtered and written once for all who watch alike. Direct-mapped
/// by revision.
pub struct Frames {
    slots: Vec<Mutex<Option<Frame>>>,
}

struct Frame {
    /// Held, so that its address names it for as long as the lines are here.
    batch: Arc<Batch>,
    selectors: Arc<str>,
    lines: Bytes,
}

/// More than the batches that are on their way at once; what else watches in another way takes its turn.
const FRAME_SLOTS: usize = 64;

impl Default for Frames {
    fn default() -> Self {
        Self { slots: (0..FRAME_SLOTS).map(|_| Mutex::new(None)).collect() }
    }
}

impl Frames {
    fn get(
        &self,
        batch: &Arc<Batch>,
        selectors: &Arc<str>,
        write: impl FnOnce() -> Result<Bytes, Status>,
    ) -> Result<Bytes, Status> {
        let slot = &self.slots[batch.revision as usize % FRAME_SLOTS];
        // Nothing panics while a slot is held, and what is in it is whole either way.
        if let Some(frame) = slot.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && Arc::ptr_eq(&frame.batch, batch)
            && frame.selectors == *selectors
        {
            return Ok(frame.lines.clone());
        }
        let lines = write()?;
        let frame = Frame { batch: batch.clone(), selectors: selectors.clone(), lines: lines.clone() };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
        Ok(lines)
    }
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    let mut out = json!({"type": kind, "object": object}).to_string().into_bytes();
    out.push(b'\n');
    out
}

fn error_line(status: &Status) -> Bytes {
    line("ERROR", &status.to_json()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_watch_alike_share_lines() {
        let frames = Frames::default();
        let batch = |revision| Arc::new(Batch { revision, events: Vec::new() });
        let (first, namesake, later) = (batch(3), batch(3), batch(3 + FRAME_SLOTS as u64));
        let get = |batch, selectors: &str, lines: &'static str| {
            let shown = frames.get(batch, &selectors.into(), || Ok(Bytes::from_static(lines.as_bytes())));
            String::from_utf8(shown.unwrap().to_vec()).unwrap()
        };
        assert_eq!(get(&first, "a=b", "one"), "one");
        assert_eq!(get(&first, "a=b", "not asked for"), "one");
        assert_eq!(get(&first, "a=c", "two"), "two", "another selector");
        assert_eq!(get(&first, "a=b", "one again"), "one again", "whoever watches in another way took the place");
        assert_eq!(get(&namesake, "a=b", "three"), "three", "a part of a batch has its revision too");
        assert_eq!(get(&later, "a=b", "four"), "four");
    }
}
