//! The shell that every control loop runs in: changes become keys, keys wait in a queue, and each is looked at, planned
//! for and acted upon until nothing is left to do.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use client::{Cache, Change, Key, Object, Update};
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::Duration,
};
use tracing::Instrument;

use crate::{
    act::Actor,
    plan::Plan,
    queue::{Outcome, Queue, Turn},
};

/// Keys on their way from the caches to one controller's queue, where equal ones become one. A full channel only makes
/// the feed wait, and a feed that waits too long is told to look at everything.
const ASKS: usize = 1024;

/// Keys taken over from the channel before the next turn is given: enough to fold a burst into few turns.
const ASKS_AT_ONCE: usize = 256;

/// One control loop: what its keys are, and what one look at one key leads to.
pub trait Controller: Send + Sync + 'static {
    /// As it stands in events and logs.
    const NAME: &'static str;
    /// Keys that are looked at side by side. One is enough where a look is nothing but arithmetic, and is needed where
    /// two keys want the same thing.
    const WORKERS: usize;

    /// Every key that may need a look: what a start, or a gap in the changes, begins with.
    fn keys(&self) -> Vec<Key>;

    fn plan(&self, turn: &Turn, now: Timestamp) -> impl Future<Output = client::Result<Plan>> + Send;
}

/// What a controller is asked for.
#[derive(Debug)]
pub enum Ask {
    Key(Key, &'static str),
    /// Changes were missed.
    Everything,
}

/// Where a controller's keys come from.
pub struct Feeds {
    to: mpsc::Sender<Ask>,
    from: mpsc::Receiver<Ask>,
    tasks: JoinSet<()>,
}

impl Feeds {
    pub fn new() -> Feeds {
        let (to, from) = mpsc::channel(ASKS);
        Feeds { to, from, tasks: JoinSet::new() }
    }

    /// For what is no cache.
    pub fn sender(&self) -> mpsc::Sender<Ask> {
        self.to.clone()
    }

    /// Follows a cache from this moment on; `keys` says whom a change concerns.
    pub fn on<K: Object>(
        mut self,
        cache: &Arc<Cache<K>>,
        reason: &'static str,
        keys: impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static,
    ) -> Feeds {
        let mut changes = cache.subscribe();
        let (to, cache) = (self.to.clone(), Arc::clone(cache));
        self.tasks.spawn(async move {
            // The cache lives as long as somebody follows it.
            let _cache = cache;
            while let Some(update) = changes.next().await {
                let asks = match update {
                    // A panic costs a look at everything; a feed that ended would leave its controller deaf.
                    Update::Change(change) => match catch_unwind(AssertUnwindSafe(|| keys(&change))) {
                        Ok(keys) => keys.into_iter().map(|key| Ask::Key(key, reason)).collect(),
                        Err(_) => {
                            tracing::error!(key = %change.key, reason, "nobody can say whom this change concerns");
                            vec![Ask::Everything]
                        }
                    },
                    Update::Resync => vec![Ask::Everything],
                };
                for ask in asks {
                    if to.send(ask).await.is_err() {
                        return;
                    }
                }
            }
        });
        self
    }
}

/// Runs one controller until dropped. The caches that it reads must have been filled once.
pub async fn drive<C: Controller>(controller: Arc<C>, actor: Actor, feeds: Feeds) {
    // Held here, so that the feeds end with the loop; so does every look that is under way.
    let Feeds { to: _to, mut from, tasks: _tasks } = feeds;
    let mut queue = Queue::default();
    let mut looks = Looks { running: JoinSet::new(), keys: HashMap::new() };
    let ask_everything = |queue: &mut Queue, reason| {
        controller.keys().into_iter().for_each(|key| queue.ask(key, reason));
    };
    ask_everything(&mut queue, "start");
    let mut asks = Vec::with_capacity(ASKS_AT_ONCE);
    loop {
        while looks.running.len() < C::WORKERS
            && let Some(turn) = queue.take()
        {
            looks.begin(&controller, &actor, turn);
        }
        let deadline = queue.next_deadline();
        tokio::select! {
            taken = from.recv_many(&mut asks, ASKS_AT_ONCE) => {
                if taken == 0 {
                    return;
                }
                for ask in asks.drain(..) {
                    match ask {
                        Ask::Key(key, reason) => queue.ask(key, reason),
                        Ask::Everything => ask_everything(&mut queue, "changes were missed"),
                    }
                }
            }
            Some(end) = looks.running.join_next_with_id() => {
                if let Some((key, outcome)) = looks.end(end) {
                    queue.done(key, outcome, now());
                }
            }
            () = until(deadline), if deadline.is_some() => queue.wake(now()),
        }
    }
}

/// The looks that are under way.
struct Looks {
    running: JoinSet<Outcome>,
    keys: HashMap<Id, Key>,
}

impl Looks {
    fn begin<C: Controller>(&mut self, controller: &Arc<C>, actor: &Actor, turn: Turn) {
        let (controller, actor, key) = (Arc::clone(controller), actor.clone(), turn.key.clone());
        let span = tracing::debug_span!("reconcile", controller = C::NAME, key = %turn.key, reason = turn.reason);
        let look = async move { look(&*controller, &actor, &turn).await };
        let handle = self.running.spawn(look.instrument(span));
        self.keys.insert(handle.id(), key);
    }

    /// A panic fails one look, not the controller.
    fn end(&mut self, end: Result<(Id, Outcome), JoinError>) -> Option<(Key, Outcome)> {
        match end {
            Ok((id, outcome)) => Some((self.keys.remove(&id)?, outcome)),
            Err(error) => {
                let key = self.keys.remove(&error.id())?;
                tracing::error!(%key, %error, "a look at a key broke off");
                Some((key, Outcome::Failed(error.to_string())))
            }
        }
    }
}

async fn look<C: Controller>(controller: &C, actor: &Actor, turn: &Turn) -> Outcome {
    let outcome = match controller.plan(turn, now()).await {
        Ok(plan) => {
            if !plan.steps.is_empty() {
                tracing::debug!(?plan, "to do");
            }
            actor.carry_out(C::NAME, plan).await
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    if let Outcome::Failed(error) = &outcome {
        tracing::info!(controller = C::NAME, key = %turn.key, error, "will be tried again");
    }
    outcome
}

pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
    let now = Timestamp::now();
    now
}

async fn until(deadline: Option<Timestamp>) {
    let left = deadline.map(|d| d.duration_since(now())).unwrap_or_default();
    // Timers have a grain of a millisecond: one more, and the deadline has surely passed when they ring.
    let left = Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_millis(1);
    tokio::time::sleep(left).await;
}
