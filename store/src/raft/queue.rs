//! A queue between threads that is emptied in one go. What bounds each use of it is said where it is used.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

#[derive(Debug)]
pub struct Queue<T> {
    items: Mutex<Items<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Items<T> {
    waiting: Vec<T>,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { items: Mutex::new(Items { waiting: Vec::new(), closed: false }), filled: Condvar::default() }
    }
}

impl<T> Queue<T> {
    /// Into a closed queue nothing goes any more: the item is dropped, and with it whatever it would have answered.
    pub fn push(&self, item: T) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.closed {
            // Dropped without the lock, as dropping may do anything.
            drop(items);
            drop(item);
            return;
        }
        items.waiting.push(item);
        // Only the first one has somebody to wake.
        if items.waiting.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Everything that is there; waits for something, but no longer than `timeout`.
    pub fn take(&self, timeout: Duration) -> Vec<T> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.filled.wait_timeout_while(items, timeout, |items| items.waiting.is_empty());
        let (mut items, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut items.waiting)
    }

    /// Closes it and answers what was still in it.
    pub fn close(&self) -> Vec<T> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.closed = true;
        std::mem::take(&mut items.waiting)
    }
}
