//! Shared queues: bytes from one plugin to another, across workers.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{abi::Status, embedder::QueueListener};

/// Queues by `vm_id` and name. Clones are the same queues.
#[derive(Clone, Debug, Default)]
pub struct SharedQueues {
    inner: Arc<Mutex<Inner>>,
}

/// How much there may be. More answers [`Status::InternalFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Queues. Default 1,000.
    pub queues: usize,
    /// Items in one queue. Default 10,000.
    pub items: usize,
    /// Bytes in one queue, and 32 for each item. Default 16 MiB.
    pub bytes: usize,
    /// The same in all queues together. Default 64 MiB.
    pub all_bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { queues: 1_000, items: 10_000, bytes: 16 << 20, all_bytes: 64 << 20 }
    }
}

/// What an item costs beside its bytes.
const ITEM_BYTES: usize = 32;

#[derive(Default)]
struct Inner {
    limits: QueueLimits,
    tokens: HashMap<(Box<str>, Box<[u8]>), u32>,
    /// By token; the first has 1.
    queues: Vec<Queue>,
    /// Of all queues.
    bytes: usize,
}

struct Queue {
    items: VecDeque<Box<[u8]>>,
    bytes: usize,
    listener: Arc<dyn QueueListener>,
}

impl SharedQueues {
    /// None yet, with limits.
    pub fn new(limits: QueueLimits) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { limits, ..Inner::default() })) }
    }

    /// Makes a queue, or takes one over: the last that registered is told of new items.
    ///
    /// # Errors
    /// [`Status::InternalFailure`] if there are too many.
    pub fn register(
        &self,
        vm_id: &str,
        name: &[u8],
        listener: Arc<dyn QueueListener>,
    ) -> Result<u32, Status> {
        let mut inner = self.lock();
        let key = (vm_id.into(), name.into());
        if let Some(token) = inner.tokens.get(&key).copied() {
            if let Some(queue) = inner.queue(token) {
                queue.listener = listener;
            }
            return Ok(token);
        }
        if inner.queues.len() >= inner.limits.queues {
            return Err(Status::InternalFailure);
        }
        inner.queues.push(Queue { items: VecDeque::new(), bytes: 0, listener });
        let token = u32::try_from(inner.queues.len()).map_err(|_| Status::InternalFailure)?;
        inner.tokens.insert(key, token);
        Ok(token)
    }

    /// Finds a queue that somebody registered.
    ///
    /// # Errors
    /// [`Status::NotFound`].
    pub fn resolve(&self, vm_id: &str, name: &[u8]) -> Result<u32, Status> {
        let key = (vm_id.into(), name.into());
        self.lock().tokens.get(&key).copied().ok_or(Status::NotFound)
    }

    /// Puts an item in and tells the listener.
    ///
    /// # Errors
    /// [`Status::NotFound`], [`Status::InternalFailure`] if the queue is full.
    pub fn enqueue(&self, token: u32, item: &[u8]) -> Result<(), Status> {
        let mut inner = self.lock();
        let QueueLimits { items, bytes, all_bytes, .. } = inner.limits;
        let cost = item.len() + ITEM_BYTES;
        let full = inner.bytes + cost > all_bytes;
        let queue = inner.queue(token).ok_or(Status::NotFound)?;
        if full || queue.items.len() >= items || queue.bytes + cost > bytes {
            return Err(Status::InternalFailure);
        }
        queue.bytes += cost;
        queue.items.push_back(item.into());
        let listener = queue.listener.clone();
        inner.bytes += cost;
        // The listener is the embedder's code: not under our lock.
        drop(inner);
        listener.ready(token);
        Ok(())
    }

    /// Takes the oldest item out.
    ///
    /// # Errors
    /// [`Status::NotFound`], [`Status::Empty`].
    pub fn dequeue(&self, token: u32) -> Result<Box<[u8]>, Status> {
        let mut inner = self.lock();
        let queue = inner.queue(token).ok_or(Status::NotFound)?;
        let item = queue.items.pop_front().ok_or(Status::Empty)?;
        queue.bytes -= item.len() + ITEM_BYTES;
        inner.bytes -= item.len() + ITEM_BYTES;
        Ok(item)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn queue(&mut self, token: u32) -> Option<&mut Queue> {
        self.queues.get_mut((token as usize).checked_sub(1)?)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Queues").field("queues", &self.queues.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<u32>>);

    impl QueueListener for Heard {
        fn ready(&self, queue: u32) {
            self.0.lock().unwrap().push(queue);
        }
    }

    #[test]
    fn the_last_that_registered_is_told() {
        let queues = SharedQueues::default();
        let (first, last) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let token = queues.register("vm", b"q", first.clone()).unwrap();
        assert_eq!(queues.register("vm", b"q", last.clone()), Ok(token));
        assert_eq!(queues.resolve("vm", b"q"), Ok(token));
        assert_eq!(queues.resolve("other", b"q"), Err(Status::NotFound));
        queues.enqueue(token, b"item").unwrap();
        assert!(first.0.lock().unwrap().is_empty());
        assert_eq!(*last.0.lock().unwrap(), [token]);
        assert_eq!(queues.dequeue(token).unwrap()[..], b"item"[..]);
        assert_eq!(queues.dequeue(token), Err(Status::Empty));
    }

    #[test]
    fn many_queues_are_no_more_than_a_few() {
        let queues = SharedQueues::new(QueueLimits { all_bytes: 100, ..QueueLimits::default() });
        let listener = Arc::new(Heard::default());
        let one = queues.register("vm", b"q", listener.clone()).unwrap();
        let other = queues.register("vm", b"r", listener).unwrap();
        queues.enqueue(one, &[0; 40]).unwrap();
        assert_eq!(queues.enqueue(other, b""), Err(Status::InternalFailure));
        queues.dequeue(one).unwrap();
        assert_eq!(queues.enqueue(other, b""), Ok(()));
    }

    #[test]
    fn queues_are_bounded() {
        let queues = SharedQueues::new(QueueLimits {
            queues: 1,
            items: 2,
            bytes: 100,
            ..QueueLimits::default()
        });
        let token = queues.register("vm", b"q", Arc::new(Heard::default())).unwrap();
        let another = queues.register("vm", b"r", Arc::new(Heard::default()));
        assert_eq!(another, Err(Status::InternalFailure));
        assert_eq!(queues.enqueue(token, &[0; 100]), Err(Status::InternalFailure));
        queues.enqueue(token, b"1").unwrap();
        queues.enqueue(token, b"2").unwrap();
        assert_eq!(queues.enqueue(token, b"3"), Err(Status::InternalFailure));
        queues.dequeue(token).unwrap();
        assert_eq!(queues.enqueue(token, b"3"), Ok(()));
        for unknown in [0, 2, u32::MAX] {
            assert_eq!(queues.enqueue(unknown, b""), Err(Status::NotFound));
            assert_eq!(queues.dequeue(unknown), Err(Status::NotFound));
        }
    }
}
