//! Exchanges that wait for room on a connection, in the order in which they came.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    task::Waker,
};

/// Who waits. As few as `breaker.maxPending` says.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By number; without a waker where one was woken and has not been there since.
    waiting: RefCell<BTreeMap<u64, Option<Waker>>>,
    /// The number of the next to come.
    next: Cell<u64>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// At the end. Gives the place's number.
    pub(super) fn join(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().insert(number, None);
        number
    }

    pub(super) fn leave(&self, number: u64) {
        let left = self.waiting.borrow_mut().remove(&number);
        // Whose task goes with it might be in the queue.
        drop(left);
    }

    pub(super) fn is_first(&self, number: u64) -> bool {
        self.waiting.borrow().first_key_value().is_some_and(|(first, _)| *first == number)
    }

    /// Keeps the place, and wakes `waker` when something is new.
    pub(super) fn wait(&self, number: u64, waker: &Waker) {
        let waker = Some(waker.clone());
        let before =
            self.waiting.borrow_mut().get_mut(&number).map(|kept| std::mem::replace(kept, waker));
        drop(before);
    }

    pub(super) fn wake_first(&self) {
        let first =
            self.waiting.borrow_mut().first_entry().and_then(|mut first| first.get_mut().take());
        if let Some(first) = first {
            first.wake();
        }
    }

    pub(super) fn wake_all(&self) {
        let all: Vec<Waker> =
            self.waiting.borrow_mut().values_mut().filter_map(Option::take).collect();
        all.into_iter().for_each(Waker::wake);
    }
}
