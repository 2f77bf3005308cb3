//! Those who watch all the time, and go on from where they were whenever a watch ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::Client;
use tokio::time::{sleep, timeout};

use super::{
    clients::Shared,
    history::{History, Outcome, Request, Revision, WatchLog},
    kube::{Line, line, watch},
};

/// The server ends a watch after this time; it is resumed.
const WATCH_SECONDS: u64 = 15;
/// There is always somebody who writes: a silent watch has lost its server.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);

/// Up to which revision watchers have to get before they end.
#[derive(Default)]
pub struct Goal {
    /// 0 as long as there is none.
    pub revision: AtomicU64,
    pub give_up: AtomicBool,
}

impl Goal {
    fn reached(&self, at: Revision) -> bool {
        let revision = self.revision.load(Ordering::Relaxed);
        revision != 0 && at >= revision || self.give_up.load(Ordering::Relaxed)
    }
}

pub enum Place {
    /// Always this server.
    At(usize),
    /// Another server each time, from this one on.
    Roams(usize),
}

/// How a watch ended.
enum End {
    /// The server's time was up, or the goal is reached.
    Over,
    /// Something broke: it goes on from there a little later.
    Broken,
    /// The server has forgotten where it would go on: it begins anew, with a list.
    Forgotten,
}

struct Watcher {
    shared: Arc<Shared>,
    client: Client,
    goal: Arc<Goal>,
    name: String,
    current: Option<WatchLog>,
    /// What came before, and the lists.
    history: History,
}

/// Watches until the goal; what was listed to begin with, and what was told.
pub async fn follow(shared: Arc<Shared>, client: Client, place: Place, goal: Arc<Goal>) -> History {
    let (mut server, roams) = match place {
        Place::At(server) => (server, false),
        Place::Roams(server) => (server, true),
    };
    let name = if roams { "that roams".to_owned() } else { format!("of server {server}") };
    let mut watcher = Watcher { shared, client, goal, name, current: None, history: History::default() };
    while !watcher.done() {
        let end = watcher.watch(server).await;
        match end {
            End::Over => {}
            End::Broken => sleep(PAUSE).await,
            End::Forgotten => watcher.history.watches.extend(watcher.current.take()),
        }
        if roams {
            server = (server + 1) % watcher.shared.servers.len();
        }
    }
    watcher.history.watches.extend(watcher.current.take());
    watcher.history
}

impl Watcher {
    fn done(&self) -> bool {
        self.current.as_ref().is_some_and(|log| self.goal.reached(got_to(log)))
            || self.goal.give_up.load(Ordering::Relaxed)
    }

    async fn watch(&mut self, server: usize) -> End {
        let after = match &self.current {
            Some(log) => got_to(log),
            None => {
                let operation = self.shared.perform(&self.client, server, Request::List, PATIENCE).await;
                let Outcome::Listed(from, _) = operation.outcome else { return End::Broken };
                self.history.operations.push(operation);
                self.shared.watching.fetch_add(1, Ordering::Relaxed);
                from
            }
        };
        let name = &self.name;
        let log = self.current.get_or_insert_with(|| WatchLog { server: name.clone(), from: after, told: Vec::new() });
        let opening = watch(&self.client, &self.shared.servers[server], after, WATCH_SECONDS);
        let mut response = match timeout(PATIENCE, opening).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return if error.to_string() == "410" { End::Forgotten } else { End::Broken },
            Err(_) => return End::Broken,
        };
        let mut buffer: Vec<u8> = Vec::new();
        while !self.goal.reached(got_to(log)) {
            match timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => buffer.extend_from_slice(&chunk),
                Ok(Ok(None)) => return End::Over,
                Ok(Err(_)) | Err(_) => return End::Broken,
            }
            let moment = self.shared.now();
            let end = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for text in buffer[..end].split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
                match line(text) {
                    Ok(Line::Told(told)) => log.told.push((moment, told)),
                    Ok(Line::Other) => {}
                    Ok(Line::Error(410)) => return End::Forgotten,
                    Ok(Line::Error(_)) => return End::Broken,
                    // A line that has an end is whole.
                    Err(error) => panic!("{error:#}: {}", String::from_utf8_lossy(text)),
                }
            }
            buffer.drain(..end);
        }
        End::Over
    }
}

/// Up to which revision a watcher has been told everything.
pub fn got_to(log: &WatchLog) -> Revision {
    log.told.last().map_or(log.from, |(_, told)| told.revision())
}
