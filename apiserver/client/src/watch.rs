//! One watch: a stream of JSON lines, decoded as they come.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    client::Client,
    error::{Error, Result},
    object::{self, Object},
    request::{ListParams, collection, with_query},
    transport::{Body, BoxError},
};

/// The largest object a server stores is 1.5 MiB; a line well above it is a fault.
const MAX_LINE: usize = 16 << 20;

/// The server ends a watch after this time; it costs one request to go on, and bounds what a dead server can hide.
const WATCH_SECONDS: u32 = 3000;

/// A server that is away is asked again soon, and then at least every five seconds.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Time between two attempts to follow the server; it grows until something is heard.
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) fn new() -> Pause {
        Pause(RETRY_FIRST)
    }

    /// The server was heard: the next trouble is a new one.
    pub(crate) fn reset(&mut self) {
        self.0 = RETRY_FIRST;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(RETRY_LAST);
        pause
    }
}

pub(crate) enum Event<K> {
    Put(K),
    Delete(K),
    /// Nothing of interest happened up to this revision.
    Bookmark(u64),
}

/// The stream is the same for every kind; only [`decode`] knows the type.
pub(crate) struct Watch {
    body: Body,
    buffer: BytesMut,
    /// Where in the buffer the search for a line's end goes on, so that a long line is scanned once.
    scanned: usize,
    operation: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
}

/// Where a kind is watched from a revision on.
pub(crate) fn url<K: Object>(params: &ListParams, revision: u64) -> String {
    let mut all = params.query();
    all.extend(query(revision));
    with_query(collection::<K>(""), &all)
}

/// What makes a list a watch.
pub(crate) fn query(revision: u64) -> Vec<(&'static str, String)> {
    vec![
        ("watch", "true".to_owned()),
        ("allowWatchBookmarks", "true".to_owned()),
        ("resourceVersion", revision.to_string()),
        ("timeoutSeconds", WATCH_SECONDS.to_string()),
    ]
}

impl Watch {
    pub(crate) async fn open(client: &Client, url: String) -> Result<Watch> {
        let response = client.open(Method::GET, url.clone(), None).await?;
        let operation = format!("watch {url}");
        Ok(Watch { body: response.into_body(), buffer: BytesMut::new(), scanned: 0, operation })
    }

    /// The next event's line, or none when the server ended the watch in an orderly way.
    pub(crate) async fn next(&mut self) -> Result<Option<BytesMut>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(self.broken("an event longer than any object may be".into()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(source)) => return Err(self.broken(source)),
                None => return Ok(None),
            }
        }
    }

    fn broken(&self, source: BoxError) -> Error {
        Error::Transport { operation: self.operation.clone(), source }
    }
}

pub(crate) fn decode<K: Object>(line: &[u8]) -> Result<Event<K>> {
    let bad = |source| Error::Decode { operation: format!("watch {}", K::URL_PATH_SEGMENT), source };
    let line: Line<'_> = serde_json::from_slice(line).map_err(bad)?;
    // From bytes, as everywhere else: a second reader would compile every kind a second time.
    let object = line.object.get().as_bytes();
    match line.kind {
        "ADDED" | "MODIFIED" => Ok(Event::Put(serde_json::from_slice(object).map_err(bad)?)),
        "DELETED" => Ok(Event::Delete(serde_json::from_slice(object).map_err(bad)?)),
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_slice(object).map_err(bad)?;
            Ok(Event::Bookmark(object::parse_revision(Some(&bookmark.metadata.resource_version))))
        }
        "ERROR" => {
            let status: Status = serde_json::from_slice(object).map_err(bad)?;
            Err(Error::Api(Box::new(status)))
        }
        other => Err(bad(serde::de::Error::custom(format!("an event of unknown type {other:?}")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_is_heard() {
        let mut pause = Pause::new();
        let waits: Vec<u128> = (0..9).map(|_| pause.next().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pause.reset();
        assert_eq!(pause.next(), RETRY_FIRST);
    }
}
