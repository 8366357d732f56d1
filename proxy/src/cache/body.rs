//! The body of a stored response: written once while it arrives, read by any number of callers meanwhile and after.
//!
//! Bytes are copied as they come: what hyper hands out is a part of a larger buffer, which would stay in memory with it
//! and which nobody counts.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::sync::Notify;

/// Smaller pieces are put together: each takes some memory beside its bytes, and an origin may send single ones.
const PIECE: usize = 16 * 1024;

/// Bytes that responses take in memory: those that are stored, those that are arriving, and those that are gone from the
/// store while somebody still reads them.
#[derive(Debug, Default)]
pub struct Room {
    taken: AtomicU64,
    most: AtomicU64,
}

impl Room {
    /// For a store of so many bytes. What is not stored has a tenth of that.
    pub fn set_store(&self, most_bytes: u64) {
        self.most.store(most_bytes.saturating_add(most_bytes / 10), Ordering::Relaxed);
    }

    /// Bytes in use.
    #[cfg(test)]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let room = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }
}

/// What a body takes of the room, given back with the body.
#[derive(Debug)]
struct Reserved {
    room: Arc<Room>,
    bytes: AtomicU64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A body that is arriving, or is all there.
#[derive(Debug, Default)]
pub struct StoredBody {
    reserved: Option<Reserved>,
    whole: OnceLock<Whole>,
    arriving: Mutex<Arriving>,
    /// Of what has arrived.
    length: AtomicUsize,
    /// Wakes readers who wait for more.
    more: Notify,
}

/// All of a body.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// One piece.
    pub bytes: Bytes,
    /// What came after it.
    pub trailers: Option<HeaderMap>,
}

#[derive(Debug, Default)]
struct Arriving {
    pieces: Vec<Bytes>,
    /// What follows them, and is too little for one.
    open: Vec<u8>,
    /// It will never be whole.
    broken: bool,
}

/// What a reader gets next.
#[derive(Clone, Debug)]
pub enum Next {
    /// Bytes from where it was.
    Data(Bytes),
    /// Nothing follows but this.
    End(Option<HeaderMap>),
    /// The rest never came.
    Broken,
}

/// Where a reader is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    piece: usize,
    within: usize,
    bytes: usize,
}

impl StoredBody {
    /// All of it at once.
    pub fn whole(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        let body = Self::default();
        body.length.store(bytes.len(), Ordering::Relaxed);
        // A new one: nobody was first.
        let _ = body.whole.set(Whole { bytes, trailers });
        body
    }

    /// All of it at once, counted in `room`; none if there is no room for it and for `more` bytes that belong to it.
    pub fn whole_in(
        room: &Arc<Room>,
        bytes: Bytes,
        trailers: Option<HeaderMap>,
        more: u64,
    ) -> Option<Self> {
        let reserved = Reserved { room: room.clone(), bytes: AtomicU64::new(0) };
        let body = Self { reserved: Some(reserved), ..Self::whole(bytes, trailers) };
        body.reserve((body.len() as u64).saturating_add(more)).then_some(body)
    }

    /// One that begins to arrive, counted in `room`.
    pub fn arriving(room: Arc<Room>) -> Self {
        Self { reserved: Some(Reserved { room, bytes: AtomicU64::new(0) }), ..Self::default() }
    }

    /// Makes room for so many bytes more; false if there is none.
    pub fn reserve(&self, bytes: u64) -> bool {
        let Some(reserved) = &self.reserved else { return true };
        let fits = reserved.room.take(bytes);
        if fits {
            reserved.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Adds what has arrived.
    pub fn push(&self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.pieces().push(data);
        self.length.fetch_add(data.len(), Ordering::Relaxed);
        self.more.notify_waiters();
    }

    /// Nothing more comes but `trailers`.
    pub fn finish(&self, trailers: Option<HeaderMap>) {
        let mut arriving = self.pieces();
        let mut joined = BytesMut::with_capacity(self.len());
        for piece in &arriving.pieces {
            joined.extend_from_slice(piece);
        }
        joined.extend_from_slice(&arriving.open);
        // Who reads from the pieces has a place in the whole, too.
        if !arriving.broken && self.whole.set(Whole { bytes: joined.freeze(), trailers }).is_ok() {
            (arriving.pieces, arriving.open) = Default::default();
        }
        drop(arriving);
        self.more.notify_waiters();
    }

    /// The rest will not come.
    pub fn cut(&self) {
        self.pieces().broken = true;
        self.more.notify_waiters();
    }

    /// All of it, when all of it is there. Takes no lock.
    pub fn get(&self) -> Option<&Whole> {
        self.whole.get()
    }

    /// Bytes that have arrived.
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// What follows `place`, waited for where it has not arrived, and moves on.
    pub async fn next(&self, place: &mut Place) -> Next {
        loop {
            let more = self.more.notified();
            let mut more = std::pin::pin!(more);
            // Before looking: what arrives in between must wake us.
            more.as_mut().enable();
            if let Some(next) = self.look(place) {
                return next;
            }
            more.await;
        }
    }

    fn look(&self, place: &mut Place) -> Option<Next> {
        if let Some(whole) = self.whole.get() {
            return Some(from_whole(whole, place));
        }
        let arriving = self.pieces();
        if let Some(data) = arriving.after(place) {
            place.bytes += data.len();
            return Some(Next::Data(data));
        }
        match (self.whole.get(), arriving.broken) {
            (Some(whole), _) => Some(from_whole(whole, place)),
            (None, true) => Some(Next::Broken),
            (None, false) => None,
        }
    }

    fn pieces(&self) -> MutexGuard<'_, Arriving> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arriving {
    fn push(&mut self, data: &[u8]) {
        if data.len() < PIECE {
            self.open.extend_from_slice(data);
        }
        let is_large = data.len() >= PIECE;
        if self.open.len() >= PIECE || (is_large && !self.open.is_empty()) {
            self.pieces.push(Bytes::copy_from_slice(&self.open));
            self.open.clear();
        }
        if is_large {
            self.pieces.push(Bytes::copy_from_slice(data));
        }
    }

    /// What there is behind a place, which is moved on. What was open when somebody read it is a piece later.
    fn after(&self, place: &mut Place) -> Option<Bytes> {
        while let Some(piece) = self.pieces.get(place.piece) {
            let rest = piece.slice(std::mem::take(&mut place.within)..);
            place.piece += 1;
            if !rest.is_empty() {
                return Some(rest);
            }
        }
        let rest = self.open.get(place.within..).filter(|rest| !rest.is_empty())?;
        place.within = self.open.len();
        Some(Bytes::copy_from_slice(rest))
    }
}

fn from_whole(whole: &Whole, place: &mut Place) -> Next {
    if place.bytes >= whole.bytes.len() {
        return Next::End(whole.trailers.clone());
    }
    let rest = whole.bytes.slice(place.bytes..);
    place.bytes = whole.bytes.len();
    Next::Data(rest)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn read(body: &StoredBody) -> Result<Vec<u8>, Vec<u8>> {
        let (mut place, mut bytes) = (Place::default(), Vec::new());
        loop {
            match body.next(&mut place).await {
                Next::Data(data) => bytes.extend_from_slice(&data),
                Next::End(_) => return Ok(bytes),
                Next::Broken => return Err(bytes),
            }
        }
    }

    #[tokio::test]
    async fn who_reads_while_it_arrives_gets_all_of_it() {
        let body = Arc::new(StoredBody::default());
        body.push(b"one ");
        let mut early = Place::default();
        assert!(matches!(body.next(&mut early).await, Next::Data(data) if data == "one "));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let body = body.clone();
                tokio::spawn(async move { read(&body).await })
            })
            .collect();
        tokio::task::yield_now().await;
        body.push(b"");
        body.push(b"two ");
        tokio::task::yield_now().await;
        body.push(b"three");
        body.finish(None);
        for reader in readers {
            assert_eq!(reader.await.unwrap().unwrap(), b"one two three");
        }
        // In the middle when it became whole.
        assert!(matches!(body.next(&mut early).await, Next::Data(data) if data == "two three"));
        assert!(matches!(body.next(&mut early).await, Next::End(None)));
        assert_eq!(body.get().unwrap().bytes, "one two three");
        assert_eq!(read(&body).await.unwrap(), b"one two three");
    }

    /// However it comes and whoever reads when, everybody gets the same.
    #[tokio::test]
    async fn small_pieces_are_put_together() {
        let body = StoredBody::default();
        let mut readers: [(Place, Vec<u8>); 4] = Default::default();
        let mut all = Vec::new();
        let sizes = [1, 2, PIECE - 3, 1, PIECE, 5, 2 * PIECE, PIECE - 1, PIECE - 1, 7];
        for (step, size) in sizes.into_iter().cycle().take(200).enumerate() {
            let data: Vec<u8> = (0..size).map(|at| ((at + step) % 251) as u8).collect();
            body.push(&data);
            all.extend_from_slice(&data);
            // The first reads always, the last hardly ever.
            for (at, (place, read)) in readers.iter_mut().enumerate() {
                while step % (3 * at + 1) == 0 && read.len() < all.len() {
                    let Next::Data(data) = body.next(place).await else { panic!("an end") };
                    read.extend_from_slice(&data);
                }
            }
        }
        assert!(body.pieces().pieces.len() <= all.len() / PIECE + 100);
        let most = body.pieces().pieces.len();
        (0..PIECE).for_each(|_| body.push(b"x"));
        assert!(body.pieces().pieces.len() <= most + 2);
        all.extend_from_slice(&[b'x'; PIECE]);
        body.finish(None);
        for (mut place, mut bytes) in readers {
            while let Next::Data(data) = body.next(&mut place).await {
                bytes.extend_from_slice(&data);
            }
            assert!(bytes == all);
        }
    }

    #[tokio::test]
    async fn what_is_cut_is_never_whole() {
        let body = StoredBody::default();
        body.push(b"one");
        body.cut();
        assert_eq!(read(&body).await, Err(b"one".to_vec()));
        body.finish(None);
        assert!(body.get().is_none());
        assert_eq!(read(&body).await, Err(b"one".to_vec()));
    }

    #[tokio::test]
    async fn none_at_all_is_whole_too() {
        assert_eq!(read(&StoredBody::whole(Bytes::new(), None)).await.unwrap(), b"");
        let body = StoredBody::default();
        body.finish(Some(HeaderMap::new()));
        assert!(matches!(body.next(&mut Place::default()).await, Next::End(Some(_))));
    }

    #[test]
    fn room_is_given_back_with_the_body() {
        let room = Arc::new(Room::default());
        room.set_store(100);
        let (one, other) = (StoredBody::arriving(room.clone()), StoredBody::arriving(room.clone()));
        assert!(one.reserve(60) && other.reserve(50));
        assert!(!one.reserve(1), "a tenth more than the store has, and no more");
        assert!(!one.reserve(u64::MAX));
        drop(other);
        assert_eq!(room.taken(), 60);
        assert!(one.reserve(50));
        drop(one);
        assert_eq!(room.taken(), 0);
    }
}
