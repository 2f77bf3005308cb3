//! The service `Watch`: many watches on one stream.
//!
//! Each watch is a task that owns its watcher; the call's own task reads what the client asks for, and sends what the
//! watches have for it through one bounded channel. So a watch's responses stay in order, a client that does not read
//! stops its watches, and what they miss meanwhile they read from the history.
//!
//! Invariant: everything a watch had when it answered a request for its progress is in the channel before that answer.

mod events;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval},
};

use self::events::Events;
use super::{
    Api,
    grpc::{Call, Gone, Incoming, Outgoing, frame},
    kv::range_end,
    messages::watch::{FilterType, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::Request},
    status::{Code, Status},
};
use crate::{Batch, Error, Revision, WatchError, Watcher};

/// Responses that wait for the client to read on, of all the watches of a stream.
const CHANNEL: usize = 64;
/// Requests to one watch that wait for it.
const REQUESTS: usize = 4;
/// Watches on one stream; a client with more is told so. kube-apiserver has some hundreds.
const MAX_WATCHES: usize = 100_000;
/// How often a watch that asks for it is told how far it has come. etcd's own default is ten minutes; clusters set it to
/// this, as a cache can answer for no newer state than it has been told of.
const PROGRESS: Duration = Duration::from_secs(5);
/// The id of no watch, and of all of them.
const NO_WATCH: i64 = -1;

pub async fn watch(api: &Api, call: Call) {
    let Some((incoming, outgoing)) = call.answer() else { return };
    let (sender, responses) = mpsc::channel(CHANNEL);
    let stream = Stream { api: api.clone(), sender, next_id: 0, watches: BTreeMap::new(), tasks: JoinSet::new() };
    let writer = write(outgoing, responses);
    tokio::pin!(writer);
    tokio::select! {
        // A stream that nobody reads is of no use.
        () = &mut writer => {}
        result = stream.read(incoming) => {
            if let Err(status) = result {
                tracing::debug!(?status, "a stream of watches ended");
            }
            // All the senders are gone with the stream: what is in the channel is the rest.
            writer.await;
        }
    }
}

async fn write(mut outgoing: Outgoing, mut responses: mpsc::Receiver<Bytes>) {
    loop {
        let response = tokio::select! {
            biased;
            response = responses.recv() => response,
            () = outgoing.gone() => return,
        };
        let Some(response) = response else { return outgoing.end(Err(Status::STOPPED)) };
        if outgoing.send(response).await.is_err() {
            return;
        }
    }
}

struct Stream {
    api: Api,
    sender: mpsc::Sender<Bytes>,
    next_id: i64,
    watches: BTreeMap<i64, mpsc::Sender<Control>>,
    /// They end with the stream.
    tasks: JoinSet<Ended>,
}

/// What a watch was over with.
enum Ended {
    Watch(i64),
    Store,
}

enum Control {
    Cancel,
    Progress(oneshot::Sender<Revision>),
}

impl Stream {
    async fn read(mut self, mut incoming: Incoming) -> Result<(), Status> {
        loop {
            let request: Option<WatchRequest> = tokio::select! {
                request = incoming.next() => request?,
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(Ended::Watch(id)) => {
                        // Its id may have been given again since.
                        if self.watches.get(&id).is_some_and(mpsc::Sender::is_closed) {
                            self.watches.remove(&id);
                        }
                        continue;
                    }
                    Ok(Ended::Store) => return Err(Status::STOPPED),
                    Err(error) => return Err(Status { code: Code::Unknown, message: error.to_string().into() }),
                },
            };
            let done = match request.map(|request| request.request) {
                Some(Some(Request::Create(create))) => self.create(create).await,
                Some(Some(Request::Cancel(cancel))) => self.cancel(cancel.watch_id).await,
                Some(Some(Request::Progress(_))) => self.progress().await,
                // Of a kind that came after this: etcd passes over it too.
                Some(None) => Ok(()),
                // The client asks for nothing more, and goes on reading; the writer knows when it does not.
                None => std::future::pending().await,
            };
            if done.is_err() {
                return Ok(());
            }
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Gone> {
        let now = self.api.store.revision();
        let created = WatchResponse { header: self.api.header(now), created: true, ..WatchResponse::default() };
        let options = match self.options(&request) {
            Ok(options) => options,
            Err(reason) => {
                let refused =
                    WatchResponse { watch_id: NO_WATCH, canceled: true, cancel_reason: reason.into(), ..created };
                return self.send(&refused).await;
            }
        };
        let id = options.id;
        self.send(&WatchResponse { watch_id: id, ..created }).await?;
        let from = match Revision::try_from(request.start_revision) {
            // Counted from what the client has just been told, so that nothing comes to lie in between.
            Ok(0) | Err(_) => now + 1,
            Ok(revision) => revision,
        };
        let Some(watcher) = self.begin(&options, from).await? else { return Ok(()) };
        let (control, requests) = mpsc::channel(REQUESTS);
        self.watches.insert(id, control);
        let watch = Watch { api: self.api.clone(), options, watcher, sender: self.sender.clone(), told: false };
        self.tasks.spawn(watch.run(requests));
        Ok(())
    }

    fn options(&mut self, request: &WatchCreateRequest) -> Result<Options, &'static str> {
        let start = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key.clone() };
        let end = match range_end(&request.range_end) {
            None => [&start[..], b"\0"].concat().into(),
            Some(end) if !end.is_empty() && end <= start => return Err("mvcc: watcher range is empty"),
            Some(end) => end,
        };
        if request.start_revision < 0 {
            return Err(COMPACTED);
        }
        if self.watches.len() >= MAX_WATCHES {
            return Err("too many watches on one stream");
        }
        let id = match request.watch_id {
            0 => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id if self.watches.contains_key(&id) => return Err("mvcc: duplicate watch ID provided on the WatchStream"),
            id => id,
        };
        let filters = |kind| request.filters.contains(&(kind as i32));
        Ok(Options {
            id,
            start,
            end,
            puts: !filters(FilterType::NoPut),
            deletes: !filters(FilterType::NoDelete),
            previous: request.prev_kv,
            progress: request.progress_notify,
            fragment: request.fragment,
        })
    }

    /// A watcher. Without one the client has been told why.
    async fn begin(&mut self, options: &Options, from: Revision) -> Result<Option<Watcher>, Gone> {
        let store = &self.api.store;
        match store.watch(options.start.clone(), options.end.clone(), from) {
            Ok(watcher) => Ok(Some(watcher)),
            Err(error) => {
                let is_compacted = matches!(error, Error::Compacted { .. });
                let compacted = if is_compacted { store.oldest_revision() as i64 } else { 0 };
                // etcd leaves the revision out, as it stands for no state.
                let header = self.api.header(0);
                self.send(&WatchResponse { header, ..canceled(options.id, compacted) }).await?;
                Ok(None)
            }
        }
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        // It answers by itself, after everything else it has said. One that has ended meanwhile has said so.
        if let Some(watch) = self.watches.remove(&id) {
            let _ = watch.send(Control::Cancel).await;
        }
        Ok(())
    }

    /// Tells how far all the watches have come, once everything before that has been sent.
    async fn progress(&mut self) -> Result<(), Gone> {
        let mut up_to = self.api.store.revision();
        for watch in self.watches.values() {
            let (answer, answered) = oneshot::channel();
            if watch.send(Control::Progress(answer)).await.is_ok()
                && let Ok(revision) = answered.await
            {
                up_to = up_to.min(revision);
            }
        }
        let header = self.api.header(up_to);
        self.send(&WatchResponse { header, watch_id: NO_WATCH, ..WatchResponse::default() }).await
    }

    async fn send(&self, response: &WatchResponse) -> Result<(), Gone> {
        self.sender.send(frame(response)).await.map_err(|_| Gone)
    }
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

fn canceled(watch_id: i64, compact_revision: i64) -> WatchResponse {
    WatchResponse { watch_id, canceled: true, compact_revision, ..WatchResponse::default() }
}

/// What a client asked a watch to be like.
struct Options {
    id: i64,
    start: Bytes,
    end: Bytes,
    puts: bool,
    deletes: bool,
    previous: bool,
    progress: bool,
    fragment: bool,
}

struct Watch {
    api: Api,
    options: Options,
    watcher: Watcher,
    sender: mpsc::Sender<Bytes>,
    /// Whether the client has heard anything since the last tick.
    told: bool,
}

/// Why a watch is over.
enum Over {
    Gone,
    Ended(WatchError),
}

impl From<Gone> for Over {
    fn from(Gone: Gone) -> Over {
        Over::Gone
    }
}

impl From<WatchError> for Over {
    fn from(error: WatchError) -> Over {
        Over::Ended(error)
    }
}

impl Watch {
    async fn run(mut self, mut requests: mpsc::Receiver<Control>) -> Ended {
        let id = self.options.id;
        let last = match self.deliver(&mut requests).await {
            Ok(()) => WatchResponse { header: self.api.header_now(), ..canceled(id, 0) },
            Err(Over::Ended(WatchError::Slow { .. } | WatchError::Compacted { .. })) => {
                let oldest = self.api.store.oldest_revision() as i64;
                WatchResponse { header: self.api.header(0), ..canceled(id, oldest) }
            }
            Err(Over::Ended(WatchError::Closed)) => return Ended::Store,
            Err(Over::Gone) => return Ended::Watch(id),
        };
        // Nobody hears it when the stream is gone.
        let _ = self.send(&last).await;
        Ended::Watch(id)
    }

    /// Until the client cancels it.
    async fn deliver(&mut self, requests: &mut mpsc::Receiver<Control>) -> Result<(), Over> {
        let mut ticks = self.options.progress.then(|| {
            let mut ticks = interval(PROGRESS);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.reset();
            ticks
        });
        loop {
            tokio::select! {
                batch = self.watcher.next() => self.send_events(batch?).await?,
                request = requests.recv() => match request {
                    Some(Control::Progress(answer)) => {
                        while let Some(batch) = self.watcher.try_next()? {
                            self.send_events(batch).await?;
                        }
                        // Nobody waits for it when the stream has ended.
                        let _ = answer.send(self.watcher.progress());
                    }
                    Some(Control::Cancel) | None => return Ok(()),
                },
                () = tick(&mut ticks) => {
                    if !std::mem::take(&mut self.told) {
                        let header = self.api.header(self.watcher.progress());
                        let watch_id = self.options.id;
                        self.send(&WatchResponse { header, watch_id, ..WatchResponse::default() }).await?;
                    }
                }
            }
        }
    }

    /// Sends a batch, and what has come since with it.
    async fn send_events(&mut self, batch: Arc<Batch>) -> Result<(), Over> {
        let mut events = Events::default();
        let mut error = None;
        let mut next = Some(batch);
        while let Some(batch) = next {
            events.add(&batch, &self.options);
            next = if events.is_full() {
                None
            } else {
                // What has been taken from the watcher is sent whatever comes after it.
                self.watcher.try_next().unwrap_or_else(|failed| {
                    error = Some(failed);
                    None
                })
            };
        }
        for response in events.responses(&self.api, &self.options) {
            self.told = true;
            self.send(&response).await?;
        }
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn send(&self, response: &WatchResponse) -> Result<(), Gone> {
        self.sender.send(frame(response)).await.map_err(|_| Gone)
    }
}

async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
