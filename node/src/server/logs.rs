//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc};

use super::{Named, NamedPath, Served, flag, named, query, value};
use crate::{
    backend::ContainerRuntime,
    logs::{Options, Reader, Watcher, attempts},
    runtime::{RunState, RuntimeEvent},
};

/// Pieces on their way to a slow client.
const PIECES: usize = 4;

pub(super) async fn handle(state: State<Served>, path: NamedPath, uri: Uri) -> Response {
    let named = match named(&state, &path) {
        Ok(named) => named,
        Err(response) => return *response,
    };
    let query = query(&uri);
    let options = match options(&query) {
        Ok(options) => options,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    let previous = flag(&query, "previous");
    let (attempt, file) = match choose(&state.0, &named, previous) {
        Ok(chosen) => chosen,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    // Watched before it is read, so that nothing written in between is missed.
    let watcher = (flag(&query, "follow") && !previous).then(|| Watcher::new(&file)).transpose();
    let (reader, watcher) = match (Reader::open(&file, &options).await, watcher) {
        (Ok(reader), Ok(watcher)) => (reader, watcher),
        (Err(error), _) | (_, Err(error)) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("read the log: {error}")).into_response();
        }
    };
    let (pieces, receiver) = mpsc::channel::<Bytes>(PIECES);
    let follow = watcher.map(|watcher| Follow {
        watcher,
        events: state.runtime.events(),
        runtime: Arc::clone(&state.runtime),
        uid: named.pod.metadata.uid.clone().unwrap_or_default(),
        container: named.container,
        attempt,
    });
    tokio::spawn(async move {
        if let Err(error) = pump(reader, follow, pieces).await {
            tracing::debug!(%error, "a log could not be read to its end");
        }
    });
    let stream = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (Ok::<_, Infallible>(piece), receiver))
    });
    ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(stream)).into_response()
}

fn options(query: &[(String, String)]) -> Result<Options, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        let parse = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0);
        value(query, name)
            .map(|text| parse(text).ok_or_else(|| format!("{name} must be a number: {text:?}")))
            .transpose()
    };
    let since_time = match value(query, "sinceTime") {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| format!("sinceTime must be a time: {text:?}"))?),
        None => None,
    };
    let since_seconds = number("sinceSeconds")?.map(|seconds| Timestamp::now() - SignedDuration::from_secs(seconds));
    let natural = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(Options {
        // kubectl writes -1 for "all".
        tail: if value(query, "tailLines") == Some("-1") { None } else { natural(number("tailLines")?) },
        since: since_time.or(since_seconds),
        timestamps: flag(query, "timestamps"),
        limit: natural(number("limitBytes")?),
    })
}

/// The file of the wanted attempt.
fn choose(served: &Served, named: &Named, previous: bool) -> Result<(u32, PathBuf), String> {
    let (pod, container) = (&named.pod, &named.container);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let dir = served.paths.container_log(pod, container, 0).map_err(|error| error.to_string())?;
    let mut all = dir.parent().map(attempts).unwrap_or_default();
    let newest = all.pop();
    if previous {
        return all
            .pop()
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    newest.ok_or_else(|| {
        let statuses = pod
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
        let waiting = statuses
            .filter(|s| s.name == *container)
            .find_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone())
            .unwrap_or_else(|| "ContainerCreating".to_owned());
        format!("container {container:?} in pod {name:?} is waiting to start: {waiting}")
    })
}

/// What tells that a followed log has ended.
struct Follow {
    watcher: Watcher,
    events: broadcast::Receiver<RuntimeEvent>,
    runtime: Arc<dyn ContainerRuntime>,
    uid: String,
    container: String,
    attempt: u32,
}

impl Follow {
    async fn over(&self) -> bool {
        let states = self.runtime.status(&self.uid).await.unwrap_or_default();
        let own = states.iter().find(|s| s.name == self.container && s.attempt == self.attempt);
        own.is_none_or(|state| matches!(state.state, RunState::Exited(_)))
    }
}

async fn pump(mut reader: Reader, mut follow: Option<Follow>, pieces: mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut last = follow.is_none();
    if let Some(follow) = &follow {
        last = follow.over().await;
    }
    loop {
        loop {
            let piece = reader.next().await?;
            if piece.is_empty() {
                break;
            }
            if pieces.send(piece.into()).await.is_err() {
                return Ok(());
            }
        }
        // What was written before the end was seen has been read by now.
        let Some(follow) = follow.as_mut().filter(|_| !last && !reader.is_done()) else { return Ok(()) };
        tokio::select! {
            changed = follow.watcher.changed() => changed?,
            event = follow.events.recv() => match event {
                Ok(event) if event.pod_uid != follow.uid => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => last = follow.over().await,
                Err(broadcast::error::RecvError::Closed) => last = true,
            },
            () = pieces.closed() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let good =
            options(&pairs(&[("tailLines", "3"), ("timestamps", "true"), ("limitBytes", "10")])).expect("options");
        assert_eq!(good, Options { tail: Some(3), timestamps: true, limit: Some(10), since: None });
        assert_eq!(options(&pairs(&[("tailLines", "-1")])).expect("options").tail, None);
        assert!(options(&pairs(&[("sinceSeconds", "60")])).expect("options").since.is_some());
        for bad in [("tailLines", "x"), ("sinceTime", "yesterday"), ("limitBytes", "-4")] {
            assert!(options(&pairs(&[bad])).is_err(), "{bad:?}");
        }
    }
}
