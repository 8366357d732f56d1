//! Shared queues: bytes from one plugin to another, across workers.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{abi::Status, embedder::QueueListener};

/// Queues by `vm_id` and name. Clones are the same queues.
#[derive(Clone, Debug, Default)]
pub struct SharedQueues {
    inner: Arc<Mutex<Inner>>,
    /// Where this is only for a trial: the queues of the others.
    others: Option<Arc<Mutex<Inner>>>,
}

/// How much there may be. More answers [`Status::InternalFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Queues. Default 1,000. Beyond it those make room that are empty and have nobody who is told of them.
    pub queues: usize,
    /// Queues that one plugin has made. Default 100.
    pub queues_of_plugin: usize,
    /// Items in one queue. Default 10,000.
    pub items: usize,
    /// Bytes in one queue, and 32 for each item. Default 16 MiB.
    pub bytes: usize,
    /// The same in all queues together, with their names and 256 for each queue. Default 64 MiB.
    pub all_bytes: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            queues: 1_000,
            queues_of_plugin: 100,
            items: 10_000,
            bytes: 16 << 20,
            all_bytes: 64 << 20,
        }
    }
}

/// What an item costs beside its bytes.
const ITEM_BYTES: usize = 32;
/// What a queue costs beside its name and items.
const QUEUE_BYTES: usize = 256;
/// Of a queue's name, which is for programmers to read. As long as that of a metric.
const NAME_BYTES: usize = 256;
/// Who may be told of one queue: an instance for each worker, of each plugin that registers it.
const MAX_LISTENERS: usize = 1_024;
/// Tokens of queues for a trial begin behind it, so that they are nobody else's.
const TRIAL_TOKENS: u32 = 1 << 31;

#[derive(Default)]
struct Inner {
    limits: QueueLimits,
    tokens: HashMap<Key, u32>,
    queues: HashMap<u32, Queue>,
    last_token: u32,
    /// Of all queues.
    bytes: usize,
}

/// The virtual machine id and the name.
type Key = (Box<str>, Box<[u8]>);

struct Queue {
    /// Who made it.
    plugin: Box<str>,
    items: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Who wants to be told, the last that registered at the end.
    listeners: Vec<Weak<dyn QueueListener>>,
    /// Who was told last.
    told: Option<Weak<dyn QueueListener>>,
}

/// Whom to tell, and how often.
struct News(Arc<dyn QueueListener>, usize);

impl News {
    /// The listener is the embedder's code: not under our lock.
    fn tell(news: Option<Self>, token: u32) {
        if let Some(Self(listener, times)) = news {
            (0..times).for_each(|_| listener.ready(token));
        }
    }
}

impl SharedQueues {
    /// None yet, with limits.
    pub fn new(limits: QueueLimits) -> Self {
        let inner = Inner { limits, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), others: None }
    }

    /// For an instance that is only to show that it starts: it finds the queues that there are, but what it registers and
    /// puts in is nobody's.
    pub fn on_trial(&self) -> Self {
        let limits = self.lock().limits;
        let inner = Inner { limits, last_token: TRIAL_TOKENS, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), others: Some(self.inner.clone()) }
    }

    /// Makes a queue, or takes one over: of those that registered and live, the last is told of new items. What is in the
    /// queue and was told to nobody who lives is told at once. `plugin`: whose instance registers.
    ///
    /// # Errors
    /// [`Status::BadArgument`] for a name that is too long, [`Status::InternalFailure`] if there are too many.
    pub fn register(
        &self,
        plugin: &str,
        vm_id: &str,
        name: &[u8],
        listener: &Arc<dyn QueueListener>,
    ) -> Result<u32, Status> {
        if name.len() > NAME_BYTES {
            return Err(Status::BadArgument);
        }
        let mut inner = self.lock();
        let key: Key = (vm_id.into(), name.into());
        let token = match inner.tokens.get(&key) {
            Some(token) => *token,
            None => inner.make(plugin, key)?,
        };
        let queue = inner.queues.get_mut(&token).ok_or(Status::InternalFailure)?;
        queue.listen(listener)?;
        let news = queue.news(0);
        drop(inner);
        News::tell(news, token);
        Ok(token)
    }

    /// Finds a queue that somebody registered.
    ///
    /// # Errors
    /// [`Status::NotFound`].
    pub fn resolve(&self, vm_id: &str, name: &[u8]) -> Result<u32, Status> {
        let key = (vm_id.into(), name.into());
        let own = self.lock().tokens.get(&key).copied();
        let found = own.or_else(|| lock(self.others.as_ref()?).tokens.get(&key).copied());
        found.ok_or(Status::NotFound)
    }

    /// Puts an item in and tells the listener.
    ///
    /// # Errors
    /// [`Status::NotFound`], [`Status::InternalFailure`] if the queue is full.
    pub fn enqueue(&self, token: u32, item: &[u8]) -> Result<(), Status> {
        if self.is_of_others(token) {
            return Ok(());
        }
        let mut inner = self.lock();
        let QueueLimits { items, bytes, all_bytes, .. } = inner.limits;
        let cost = item.len() + ITEM_BYTES;
        let full = inner.bytes + cost > all_bytes;
        let queue = inner.queues.get_mut(&token).ok_or(Status::NotFound)?;
        if full || queue.items.len() >= items || queue.bytes + cost > bytes {
            return Err(Status::InternalFailure);
        }
        queue.bytes += cost;
        queue.items.push_back(item.into());
        let news = queue.news(1);
        inner.bytes += cost;
        drop(inner);
        News::tell(news, token);
        Ok(())
    }

    /// Takes the oldest item out.
    ///
    /// # Errors
    /// [`Status::NotFound`], [`Status::Empty`].
    pub fn dequeue(&self, token: u32) -> Result<Box<[u8]>, Status> {
        if self.is_of_others(token) {
            return Err(Status::Empty);
        }
        let mut inner = self.lock();
        let queue = inner.queues.get_mut(&token).ok_or(Status::NotFound)?;
        let item = queue.items.pop_front().ok_or(Status::Empty)?;
        queue.bytes -= item.len() + ITEM_BYTES;
        inner.bytes -= item.len() + ITEM_BYTES;
        Ok(item)
    }

    /// Whether this is for a trial and the queue is not.
    fn is_of_others(&self, token: u32) -> bool {
        self.others.as_ref().is_some_and(|others| lock(others).queues.contains_key(&token))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn make(&mut self, plugin: &str, key: Key) -> Result<u32, Status> {
        if !self.has_share(plugin) {
            // Those of others are not in its way.
            self.drop_forsaken(|queue| *queue.plugin == *plugin);
        }
        let has_share = self.has_share(plugin);
        if has_share && !self.has_room(&key) {
            self.drop_forsaken(|_| true);
        }
        if !has_share || !self.has_room(&key) {
            return Err(Status::InternalFailure);
        }
        // Never given again: whoever knows one of a queue that is gone must not find another's.
        let token = self.last_token.checked_add(1).ok_or(Status::InternalFailure)?;
        self.last_token = token;
        self.bytes += cost(&key);
        let queue = Queue {
            plugin: plugin.into(),
            items: VecDeque::new(),
            bytes: 0,
            listeners: Vec::new(),
            told: None,
        };
        self.queues.insert(token, queue);
        self.tokens.insert(key, token);
        Ok(token)
    }

    fn has_share(&self, plugin: &str) -> bool {
        let own = self.queues.values().filter(|queue| *queue.plugin == *plugin).count();
        own < self.limits.queues_of_plugin
    }

    fn has_room(&self, key: &Key) -> bool {
        self.queues.len() < self.limits.queues && self.bytes + cost(key) <= self.limits.all_bytes
    }

    /// Drops those of some queues that are empty and of which nobody is told any more.
    fn drop_forsaken(&mut self, some: impl Fn(&Queue) -> bool) {
        let Self { tokens, queues, bytes, .. } = self;
        tokens.retain(|key, token| {
            let forsaken = queues.get(token).is_none_or(|queue| {
                some(queue)
                    && queue.items.is_empty()
                    && queue.listeners.iter().all(|known| !lives(known))
            });
            if forsaken && queues.remove(token).is_some() {
                *bytes -= cost(key);
            }
            !forsaken
        });
    }
}

impl Queue {
    fn listen(&mut self, listener: &Arc<dyn QueueListener>) -> Result<(), Status> {
        let other = |known: &Weak<_>| lives(known) && !is(known, listener);
        self.listeners.retain(other);
        if self.listeners.len() >= MAX_LISTENERS {
            return Err(Status::InternalFailure);
        }
        self.listeners.push(Arc::downgrade(listener));
        Ok(())
    }

    /// Whom to tell of `more` items; of all that there are if the one who was told of the others is no more.
    fn news(&mut self, more: usize) -> Option<News> {
        while self.listeners.pop_if(|last| !lives(last)).is_some() {}
        let listener = self.listeners.last()?.upgrade()?;
        let heard = self.told.as_ref().is_some_and(lives);
        let times = if heard { more } else { self.items.len() };
        if times > 0 {
            self.told = Some(Arc::downgrade(&listener));
        }
        Some(News(listener, times))
    }
}

fn lives(listener: &Weak<dyn QueueListener>) -> bool {
    listener.strong_count() > 0
}

fn is(known: &Weak<dyn QueueListener>, listener: &Arc<dyn QueueListener>) -> bool {
    std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(listener))
}

fn cost((space, name): &Key) -> usize {
    space.len() + name.len() + QUEUE_BYTES
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

    fn listener() -> (Arc<Heard>, Arc<dyn QueueListener>) {
        let heard = Arc::new(Heard::default());
        (heard.clone(), heard)
    }

    fn heard(heard: &Heard) -> Vec<u32> {
        std::mem::take(&mut heard.0.lock().unwrap())
    }

    #[test]
    fn the_last_that_registered_is_told() {
        let queues = SharedQueues::default();
        let ((first, first_told), (last, last_told)) = (listener(), listener());
        let token = queues.register("p", "vm", b"q", &first_told).unwrap();
        assert_eq!(queues.register("p", "vm", b"q", &last_told), Ok(token));
        assert_eq!(queues.resolve("vm", b"q"), Ok(token));
        assert_eq!(queues.resolve("other", b"q"), Err(Status::NotFound));
        queues.enqueue(token, b"item").unwrap();
        assert_eq!((heard(&first), heard(&last)), (vec![], vec![token]));
        assert_eq!(queues.dequeue(token).unwrap()[..], b"item"[..]);
        assert_eq!(queues.dequeue(token), Err(Status::Empty));
    }

    #[test]
    fn when_the_last_is_no_more_the_one_before_it_is_told_of_all() {
        let queues = SharedQueues::default();
        let ((first, first_told), (last, last_told)) = (listener(), listener());
        let token = queues.register("p", "vm", b"q", &first_told).unwrap();
        queues.register("p", "vm", b"q", &last_told).unwrap();
        queues.enqueue(token, b"1").unwrap();
        assert_eq!((heard(&first), heard(&last)), (vec![], vec![token]));
        drop((last, last_told));
        queues.enqueue(token, b"2").unwrap();
        assert_eq!(heard(&first), [token; 2]);
        queues.enqueue(token, b"3").unwrap();
        assert_eq!(heard(&first), [token]);
        // Nobody is left; whoever comes is told of what was left, and only once.
        drop((first, first_told));
        queues.enqueue(token, b"4").unwrap();
        let ((third, third_told), (_fourth, fourth_told)) = (listener(), listener());
        queues.register("p", "vm", b"q", &third_told).unwrap();
        assert_eq!(heard(&third), [token; 4]);
        queues.register("p", "vm", b"q", &third_told).unwrap();
        queues.register("p", "vm", b"q", &fourth_told).unwrap();
        assert!(heard(&third).is_empty());
    }

    #[test]
    fn what_is_on_trial_finds_queues_and_takes_none_over() {
        let queues = SharedQueues::default();
        let ((live, live_told), (tried, tried_told)) = (listener(), listener());
        let token = queues.register("p", "vm", b"q", &live_told).unwrap();
        let trial = queues.on_trial();
        assert_eq!(trial.resolve("vm", b"q"), Ok(token));
        let own = trial.register("p", "vm", b"q", &tried_told).unwrap();
        assert_ne!(own, token);
        trial.enqueue(token, b"not real").unwrap();
        trial.enqueue(own, b"own").unwrap();
        assert_eq!(
            (trial.dequeue(token), trial.dequeue(own)),
            (Err(Status::Empty), Ok(b"own"[..].into()))
        );
        assert_eq!((heard(&live), heard(&tried)), (vec![], vec![own]));
        queues.enqueue(token, b"real").unwrap();
        assert_eq!((heard(&live), heard(&tried)), (vec![token], vec![]));
        assert_eq!(queues.enqueue(own, b""), Err(Status::NotFound));
    }

    #[test]
    fn many_queues_are_no_more_than_a_few() {
        let limits =
            QueueLimits { all_bytes: 2 * (3 + QUEUE_BYTES) + 100, ..QueueLimits::default() };
        let queues = SharedQueues::new(limits);
        let (_heard, listener) = listener();
        let one = queues.register("p", "vm", b"q", &listener).unwrap();
        let other = queues.register("p", "vm", b"r", &listener).unwrap();
        // Names and queues count as items do.
        assert_eq!(queues.register("p", "vm", b"s", &listener), Err(Status::InternalFailure));
        queues.enqueue(one, &[0; 40]).unwrap();
        assert_eq!(queues.enqueue(other, b""), Err(Status::InternalFailure));
        queues.dequeue(one).unwrap();
        assert_eq!(queues.enqueue(other, b""), Ok(()));
    }

    #[test]
    fn one_plugin_has_no_more_than_its_share_and_short_names() {
        let queues =
            SharedQueues::new(QueueLimits { queues_of_plugin: 2, ..QueueLimits::default() });
        let (_heard, listener) = listener();
        let long = vec![b'q'; NAME_BYTES + 1];
        assert_eq!(queues.register("p", "vm", &long, &listener), Err(Status::BadArgument));
        for name in [&long[1..], b"q"] {
            queues.register("p", "vm", name, &listener).unwrap();
        }
        assert_eq!(queues.register("p", "vm", b"r", &listener), Err(Status::InternalFailure));
        assert!(queues.register("p", "vm", b"q", &listener).is_ok(), "it is there already");
        assert!(queues.register("other", "vm", b"r", &listener).is_ok());
    }

    #[test]
    fn who_has_no_share_left_takes_nothing_of_others() {
        let limits = QueueLimits { queues_of_plugin: 1, ..QueueLimits::default() };
        let queues = SharedQueues::new(limits);
        let ((_own, own_told), (restarts, restarts_told)) = (listener(), listener());
        let other = queues.register("other", "vm", b"other", &restarts_told).unwrap();
        queues.register("p", "vm", b"q", &own_told).unwrap();
        drop((restarts, restarts_told));
        assert_eq!(queues.register("p", "vm", b"r", &own_told), Err(Status::InternalFailure));
        assert_eq!(queues.enqueue(other, b"item"), Ok(()));
        drop((_own, own_told));
        let (_next, next_told) = listener();
        assert!(queues.register("p", "vm", b"r", &next_told).is_ok(), "its own makes room");
    }

    #[test]
    fn forsaken_queues_make_room() {
        let queues = SharedQueues::new(QueueLimits { queues: 2, ..QueueLimits::default() });
        let ((one, one_told), (_other, other_told)) = (listener(), listener());
        let empty = queues.register("p", "vm", b"empty", &one_told).unwrap();
        let full = queues.register("p", "vm", b"full", &one_told).unwrap();
        queues.enqueue(full, b"item").unwrap();
        assert_eq!(queues.register("p", "vm", b"new", &other_told), Err(Status::InternalFailure));
        drop((one, one_told));
        let new = queues.register("p", "vm", b"new", &other_told).unwrap();
        assert!(new > full, "tokens are not given again");
        assert_eq!(queues.enqueue(empty, b""), Err(Status::NotFound));
        assert_eq!(queues.dequeue(full).unwrap()[..], b"item"[..]);
        let bytes = queues.lock().bytes;
        assert_eq!(
            bytes,
            [b"full".len(), b"new".len()].map(|name| name + 2 + QUEUE_BYTES).iter().sum::<usize>()
        );
    }

    #[test]
    fn queues_are_bounded() {
        let queues = SharedQueues::new(QueueLimits {
            queues: 1,
            items: 2,
            bytes: 100,
            ..QueueLimits::default()
        });
        let (_heard, listener) = listener();
        let token = queues.register("p", "vm", b"q", &listener).unwrap();
        let another = queues.register("p", "vm", b"r", &listener);
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
