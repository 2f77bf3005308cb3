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
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            items: Mutex::new(Items { waiting: Vec::new(), awaited: false, closed: false }),
            filled: Condvar::default(),
        }
    }
}

impl<T> Queue<T> {
    /// Into a closed queue nothing goes any more: the item is dropped, and with it whatever it would have answered.
    pub fn push(&self, item: T) {
        if let Some(mut items) = self.add(item) {
            self.tell(&mut items);
        }
    }

    /// Without waking anybody: that is to be done by [`Queue::wake`].
    pub fn push_quietly(&self, item: T) {
        drop(self.add(item));
    }

    /// Wakes whoever waits, where there is something.
    pub fn wake(&self) {
        let mut items = self.lock();
        if !items.waiting.is_empty() {
            self.tell(&mut items);
        }
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
    fn tell(&self, items: &mut Items<T>) {
        if std::mem::take(&mut items.awaited) {
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
            items.awaited = items.waiting.is_empty();
            items.awaited
        });
        let (mut items, _) = waited.unwrap_or_else(PoisonError::into_inner);
        items.awaited = false;
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
