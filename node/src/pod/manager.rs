//! Which pods have a worker: those that the API assigns to this node, those of the checkpoints while the API does not
//! answer, and those of which only remains are found.
//!
//! Invariant: one worker per uid. A pod that is replaced by a namesake has two workers for a while, with nothing shared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
};

use client::{Cache, Object};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{broadcast, watch},
    task::{Id, JoinSet},
};

use super::{
    checkpoint, error_text as chain,
    recall::Found,
    worker::{self, Handle, Origin, Signals, Wanted},
};
use crate::{
    context::Context,
    runtime::{RuntimeChange, RuntimeEvent, SandboxState},
};

pub struct Manager {
    context: Arc<Context>,
    pods: Arc<Cache<Pod>>,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<()>,
    uids: HashMap<Id, String>,
    /// Pods whose worker broke down: the next one has to look what there is.
    broken: BTreeSet<String>,
}

impl Manager {
    pub fn new(context: Arc<Context>, pods: Arc<Cache<Pod>>) -> Manager {
        Manager {
            context,
            pods,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            uids: HashMap::new(),
            broken: BTreeSet::new(),
        }
    }

    /// Runs until dropped; workers end with it, pods do not.
    pub async fn run(mut self) {
        let mut events = self.context.runtime.events();
        let orphans = self.restore().await;
        let pods = Arc::clone(&self.pods);
        let mut changes = pods.subscribe();
        let mut synced = false;
        let mut first = std::pin::pin!(pods.synced());
        loop {
            tokio::select! {
                () = &mut first, if !synced => {
                    synced = true;
                    // Pods whose objects went while this node was cut off end before any new one begins.
                    self.reconcile();
                    self.remove_orphans(&orphans);
                }
                update = changes.next() => match update {
                    Some(_) if synced => self.reconcile(),
                    Some(_) => {}
                    None => return,
                },
                event = events.recv() => match event {
                    Ok(event) => self.pass_on(&event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.workers.values().for_each(|handle| handle.signals.look.notify_one());
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended, synced),
            }
        }
    }

    /// Starts workers for what is on disk; gives the uids that only the runtime knows.
    async fn restore(&mut self) -> BTreeSet<String> {
        let sandboxes = match self.context.runtime.sandboxes().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::error!(error = chain(&error), "the runtime's pods cannot be listed");
                Vec::new()
            }
        };
        let alive: BTreeMap<String, bool> =
            sandboxes.into_iter().map(|s| (s.uid, s.state == SandboxState::Ready)).collect();
        let saved = checkpoint::load_all(&self.context.paths.pods()).unwrap_or_else(|error| {
            tracing::error!(%error, "the pods' checkpoints cannot be read");
            Vec::new()
        });
        let mut orphans: BTreeSet<String> = alive.keys().cloned().collect();
        for (dir, pod) in saved {
            let uid = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(pod) = pod else {
                orphans.insert(uid);
                continue;
            };
            let containers = self.context.runtime.status(&uid).await.unwrap_or_default();
            let found = Some(Found { sandbox: alive.get(&uid) == Some(&true), containers });
            orphans.remove(&uid);
            let origin = Origin { pod: Arc::new(pod.clone()), ran: Some(pod), found };
            self.start(uid, origin);
        }
        orphans
    }

    fn start(&mut self, uid: String, origin: Origin) {
        let (wanted, receiver) = watch::channel(Wanted::Object(Arc::clone(&origin.pod)));
        let signals = Arc::new(Signals::default());
        let task = self.tasks.spawn(worker::run(Arc::clone(&self.context), origin, receiver, Arc::clone(&signals)));
        self.uids.insert(task.id(), uid.clone());
        self.workers.insert(uid, Handle { wanted, signals });
    }

    /// Tells every worker what the API wants of it; first those whose pods are gone.
    fn reconcile(&mut self) {
        let desired: HashMap<String, Arc<Pod>> =
            self.pods.list().into_iter().filter_map(|pod| Some((pod.meta().uid.clone()?, pod))).collect();
        for (uid, handle) in self.workers.iter().filter(|(uid, _)| !desired.contains_key(*uid)) {
            let changed = handle.wanted.send_if_modified(|wanted| {
                let Wanted::Object(pod) = wanted else { return false };
                *wanted = Wanted::Gone(Arc::clone(pod));
                true
            });
            if changed {
                tracing::debug!(uid, "the pod's object is gone");
            }
        }
        for (uid, pod) in desired {
            match self.workers.get(&uid) {
                Some(handle) => {
                    handle.wanted.send_if_modified(|wanted| {
                        let same = matches!(wanted, Wanted::Object(old)
                            if old.metadata.resource_version == pod.metadata.resource_version);
                        // A pod that was gone does not come back under the same uid.
                        let news = !same && !matches!(wanted, Wanted::Gone(_));
                        if news {
                            *wanted = Wanted::Object(pod);
                        }
                        news
                    });
                }
                None => {
                    let found = (!self.broken.remove(&uid)).then(Found::default);
                    self.start(uid, Origin { pod, ran: None, found });
                }
            }
        }
    }

    /// Removes what has neither an object nor a checkpoint.
    fn remove_orphans(&mut self, orphans: &BTreeSet<String>) {
        for uid in orphans.iter().filter(|uid| !self.workers.contains_key(*uid)) {
            let uid = uid.clone();
            tracing::info!(uid, "removing what is left of a pod that is no longer known");
            let context = Arc::clone(&self.context);
            self.tasks.spawn(async move {
                let removed = context.runtime.remove_sandbox(&uid).await;
                let detached = context.network.detach(uid.clone()).await;
                if let Err(error) = removed.map_err(|e| chain(&e)).and(detached) {
                    tracing::warn!(uid, error, "an orphan stays behind");
                    return;
                }
                if let Ok(dir) = context.paths.pod(&uid)
                    && let Ok(Err(error)) = tokio::task::spawn_blocking(move || crate::volumes::remove(&dir)).await
                {
                    tracing::warn!(uid, %error, "an orphan's files stay behind");
                }
            });
        }
    }

    fn pass_on(&self, event: &RuntimeEvent) {
        let Some(handle) = self.workers.get(&event.pod_uid) else { return };
        if matches!(event.what, RuntimeChange::ShimLost) {
            handle.signals.lost.store(true, Ordering::Release);
        }
        handle.signals.look.notify_one();
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>, synced: bool) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(uid) = self.uids.remove(&id) else { return };
        self.workers.remove(&uid);
        if let Err(error) = ended {
            tracing::error!(uid, %error, "a pod's worker broke down and is started again");
            self.broken.insert(uid);
        }
        // After a fault the pod still has its object and gets a new worker; after an orderly end it has none.
        if synced {
            self.reconcile();
        }
    }
}
