//! What the threads of the store and its callers have in common.

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::watch;

use crate::{Error, Group, mvcc::State, watch::Hub};

#[derive(Debug)]
pub struct Shared {
    /// Written by whoever works the driver; read by all, for as long as it takes to copy pointers.
    state: RwLock<State>,
    pub hub: Hub,
    pub gauges: Gauges,
    /// Told by the driver whenever it changes.
    pub group: watch::Sender<Group>,
    /// Why the store has ended, once it has.
    end: watch::Sender<Option<Error>>,
}

impl Shared {
    pub fn new(state: State) -> Shared {
        let hub = Hub::new(state.revision());
        let (group, end) = (watch::Sender::new(Group::default()), watch::Sender::new(None));
        let gauges = Gauges::default();
        gauges.fill(&state);
        Shared { state: RwLock::new(state), hub, gauges, group, end }
    }

    // A panic while the lock was held ends the store; until it has, readers see what was there.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing is accepted. The first reason stands.
    pub fn close(&self, error: Error) {
        self.end.send_if_modified(|end| end.is_none().then(|| *end = Some(error)).is_some());
        self.gauges.alone.store(false, Ordering::Release);
        self.hub.close();
    }

    pub fn check_open(&self) -> Result<(), Error> {
        self.end.borrow().clone().map_or(Ok(()), Err)
    }

    pub fn end(&self) -> watch::Receiver<Option<Error>> {
        self.end.subscribe()
    }
}

/// What the threads say of themselves.
#[derive(Debug, Default)]
pub struct Gauges {
    leader: AtomicU64,
    term: AtomicU64,
    log_bytes: AtomicU64,
    /// What is stored takes.
    bytes: AtomicU64,
    /// Somebody has found the quota exceeded.
    alarmed: AtomicBool,
    /// This member is the only one and leads: whatever is acknowledged is applied here first.
    alone: AtomicBool,
}

/// What a member is to its group.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// 0 while there is none.
    pub leader: u64,
    pub term: u64,
    /// It is the only one and leads.
    pub alone: bool,
}

impl Gauges {
    pub fn role(&self, Role { leader, term, alone }: Role) {
        self.leader.store(leader, Ordering::Relaxed);
        self.term.store(term, Ordering::Relaxed);
        self.alone.store(alone, Ordering::Release);
    }

    /// Notes how full the store is.
    pub fn fill(&self, state: &State) {
        self.bytes.store(state.bytes() as u64, Ordering::Relaxed);
        self.alarmed.store(state.is_alarmed(), Ordering::Relaxed);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn is_alarmed(&self) -> bool {
        self.alarmed.load(Ordering::Relaxed)
    }

    pub fn log_bytes(&self, bytes: u64) {
        self.log_bytes.store(bytes, Ordering::Relaxed);
    }

    pub fn log_bytes_now(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    pub fn leader(&self) -> u64 {
        self.leader.load(Ordering::Relaxed)
    }

    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    pub fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }
}
