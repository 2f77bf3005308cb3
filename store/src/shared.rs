//! What the threads of the store and its callers have in common.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{mvcc::State, watch::Hub};

#[derive(Debug)]
pub struct Shared {
    /// Written by the one thread that applies; read by all, for as long as it takes to copy pointers.
    state: RwLock<State>,
    pub hub: Hub,
}

impl Shared {
    pub fn new(state: State) -> Shared {
        let hub = Hub::new(state.revision());
        Shared { state: RwLock::new(state), hub }
    }

    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
