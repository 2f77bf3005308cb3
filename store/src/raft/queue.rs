//! A queue between threads that is emptied in one go. What bounds each use of it is said where it is used.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// For so many items room is kept, at most.
const ROOM: usize = 256;

#[derive(Debug)]
pub struct Queue<T> {
    items: Mutex<Items<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Items<T> {
    waiting: Vec<T>,
    /// Somebody waits for the first one.
    awaited: bool,
    /// Whoever waits is to come back with nothing.
    roused: bool,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            items: Mutex::new(Items { waiting: Vec::new(), awaited: false, roused: false, closed: false }),
            filled: Condvar::default(),
        }
    }
}

impl<T> Queue<T> {
    /// Into a closed queue nothing goes any more: the item is dropped, and with it whatever it would have answered.
    pub fn push(&self, item: T) {
        if let Some(items) = self.add(item) {
            self.tell(items);
        }
    }

    /// Without waking anybody: that is to be done by [`Queue::wake`].
    pub fn push_quietly(&self, item: T) {
        drop(self.add(item));
    }

    /// Wakes whoever waits, where there is something.
    pub fn wake(&self) {
        let items = self.lock();
        if !items.waiting.is_empty() {
            self.tell(items);
        }
    }

    /// Has whoever waits come back, or whoever is about to wait, though there may be nothing.
    pub fn rouse(&self) {
        let mut items = self.lock();
        items.roused = true;
        self.tell(items);
    }

    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    fn add(&self, item: T) -> Option<MutexGuard<'_, Items<T>>> {
        let mut items = self.lock();
        if items.closed {
            // Dropped without the lock, as dropping may do anything.
            drop(items);
            drop(item);
            return None;
        }
        items.waiting.push(item);
        Some(items)
    }

    /// Only who sleeps is woken, and once: to wake costs more than to push.
    fn tell(&self, mut items: MutexGuard<'_, Items<T>>) {
        let awaited = std::mem::take(&mut items.awaited);
        // Without the lock: on a busy processor the other one takes over at once, and would have to wait for it.
        drop(items);
        if awaited {
            self.filled.notify_one();
        }
    }

    /// Waits for something, but no longer than `timeout`.
    pub fn wait(&self, timeout: Duration) {
        drop(self.filled_within(timeout));
    }

    /// Everything that is there; waits for something, but no longer than `timeout`.
    pub fn take(&self, timeout: Duration) -> Vec<T> {
        let mut items = self.filled_within(timeout);
        // What comes next is about as much.
        let next = Vec::with_capacity(items.waiting.len().min(ROOM));
        std::mem::replace(&mut items.waiting, next)
    }

    fn filled_within(&self, timeout: Duration) -> MutexGuard<'_, Items<T>> {
        let items = self.lock();
        if timeout.is_zero() {
            return items;
        }
        let waited = self.filled.wait_timeout_while(items, timeout, |items| {
            // Another one may have taken what it was woken for.
            items.awaited = items.waiting.is_empty() && !items.roused;
            items.awaited
        });
        let (mut items, _) = waited.unwrap_or_else(PoisonError::into_inner);
        items.awaited = false;
        items.roused = false;
        items
    }

    fn lock(&self) -> MutexGuard<'_, Items<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes it and answers what was still in it.
    pub fn close(&self) -> Vec<T> {
        let mut items = self.lock();
        items.closed = true;
        std::mem::take(&mut items.waiting)
    }
}
