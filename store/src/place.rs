//! A thread that brings something to the store and carries it out there itself.
//!
//! A put, or a message of another member, is so little work that waking another thread for it costs more than it does:
//! whatever reads it runs on such a thread, the store does the rest there, and what comes of it is sent from there. Requests
//! that take long are for other threads; a snapshot that is installed holds this one up.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};

use crate::Store;

#[derive(Debug, Clone)]
pub struct Place {
    /// Spawns what is to run there.
    pub runtime: Handle,
    /// Whoever hands something in by it has it carried out there; best from there.
    pub store: Store,
}

impl Place {
    /// Starts a thread, with a runtime of its own, that works until `end` resolves; what still runs there is dropped then.
    pub fn start(store: &Store, name: &str, end: impl Future<Output = ()> + Send + 'static) -> io::Result<Place> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (store, work) = store.on_this_thread();
        let place = Place { runtime: runtime.handle().clone(), store };
        // Its turn comes after those that there is something to read of already: they share a sync of the log.
        runtime.spawn(work);
        thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(end))?;
        Ok(place)
    }
}
