//! Shared data: values by key, per virtual machine id, with compare-and-swap and expiry.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::abi::Status;

/// Values that instances and plugins with the same `vm_id` share. Clones are the same data.
#[derive(Clone, Debug, Default)]
pub struct SharedData {
    inner: Arc<Mutex<Inner>>,
}

/// How much there may be. Writing more answers [`Status::InternalFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataLimits {
    /// Values. Default 100,000: a quota per caller is one value per caller.
    pub entries: usize,
    /// Bytes of keys and values, and 128 for each entry. Default 64 MiB.
    pub bytes: usize,
}

impl Default for DataLimits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: 64 << 20 }
    }
}

/// What an entry costs beside its bytes, with what remembers that it expires.
const ENTRY_BYTES: usize = 128;

#[derive(Debug, Default)]
struct Inner {
    limits: DataLimits,
    spaces: HashMap<Arc<str>, HashMap<Arc<[u8]>, Entry>>,
    /// What expires, the soonest first: where there is no room, nobody looks for it among all that is kept.
    expiring: BTreeMap<Expiry, (Arc<str>, Arc<[u8]>)>,
    entries: usize,
    bytes: usize,
    last_cas: u32,
    last_expiry: u64,
}

#[derive(Debug)]
struct Entry {
    value: Box<[u8]>,
    cas: u32,
    expires: Option<Expiry>,
}

/// When a value expires, in nanoseconds of the wall clock, and a number that tells it from others of the moment.
type Expiry = (u64, u64);

impl SharedData {
    /// Empty, with limits.
    pub fn new(limits: DataLimits) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { limits, ..Inner::default() })) }
    }

    /// Appends a value to `out` and tells its number for compare-and-swap, never 0. `now` is the wall
    /// clock in nanoseconds.
    ///
    /// # Errors
    /// [`Status::NotFound`].
    pub fn read(
        &self,
        vm_id: &str,
        key: &[u8],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<u32, Status> {
        let inner = self.lock();
        let entry = inner.spaces.get(vm_id).and_then(|space| space.get(key));
        let entry = entry.filter(|entry| !entry.expired(now)).ok_or(Status::NotFound)?;
        out.extend_from_slice(&entry.value);
        Ok(entry.cas)
    }

    /// Writes a value. `cas` 0 writes in any case; another number only if it is the value's, or there
    /// is none. A value written anew does not expire.
    ///
    /// # Errors
    /// [`Status::CasMismatch`], [`Status::InternalFailure`] if it would be too much.
    pub fn write(
        &self,
        vm_id: &str,
        key: &[u8],
        value: &[u8],
        cas: u32,
        now: u64,
    ) -> Result<(), Status> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let present = inner.spaces.get(vm_id).and_then(|space| space.get(key));
        let live = present.filter(|entry| !entry.expired(now));
        if live.is_some_and(|entry| cas != 0 && entry.cas != cas) {
            return Err(Status::CasMismatch);
        }
        if !inner.make_room(vm_id, key, value, now) {
            return Err(Status::InternalFailure);
        }
        inner.insert(vm_id, key, value);
        Ok(())
    }

    /// Removes a value.
    ///
    /// # Errors
    /// [`Status::NotFound`].
    pub fn delete(&self, vm_id: &str, key: &[u8], now: u64) -> Result<(), Status> {
        let entry = self.lock().remove(vm_id, key).ok_or(Status::NotFound)?;
        if entry.expired(now) { Err(Status::NotFound) } else { Ok(()) }
    }

    /// Lets a value expire at a moment of the wall clock, in nanoseconds.
    ///
    /// # Errors
    /// [`Status::NotFound`].
    pub fn expire(&self, vm_id: &str, key: &[u8], at: u64, now: u64) -> Result<(), Status> {
        let mut inner = self.lock();
        let Inner { spaces, expiring, last_expiry, .. } = &mut *inner;
        let (name, _) = spaces.get_key_value(vm_id).ok_or(Status::NotFound)?;
        let name = name.clone();
        let space = spaces.get_mut(vm_id).ok_or(Status::NotFound)?;
        let known = space.get_key_value(key).map(|(key, _)| key.clone()).ok_or(Status::NotFound)?;
        let entry = space.get_mut(key).filter(|entry| !entry.expired(now));
        let entry = entry.ok_or(Status::NotFound)?;
        *last_expiry += 1;
        let expiry = (at, *last_expiry);
        if let Some(before) = entry.expires.replace(expiry) {
            expiring.remove(&before);
        }
        expiring.insert(expiry, (name, known));
        Ok(())
    }

    /// How many values there are, with those that expired and were not yet removed.
    pub fn entries(&self) -> usize {
        self.lock().entries
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn fits(&self, replaced: Option<usize>, added: usize) -> bool {
        let entries = self.entries + usize::from(replaced.is_none());
        let bytes = self.bytes - replaced.unwrap_or(0) + added;
        entries <= self.limits.entries && bytes <= self.limits.bytes
    }

    /// Drops what has expired until a value has room. Whether it has.
    fn make_room(&mut self, vm_id: &str, key: &[u8], value: &[u8], now: u64) -> bool {
        loop {
            let present = self.spaces.get(vm_id).and_then(|space| space.get(key));
            let replaced = present.map(|entry| cost(key, &entry.value));
            if self.fits(replaced, cost(key, value)) {
                return true;
            }
            let soonest = self.expiring.first_key_value().filter(|((at, _), _)| *at <= now);
            let Some((_, (space, key))) = soonest else { return false };
            let (space, key) = (space.clone(), key.clone());
            self.remove(&space, &key);
        }
    }

    fn insert(&mut self, vm_id: &str, key: &[u8], value: &[u8]) {
        self.last_cas = self.last_cas.checked_add(1).unwrap_or(1);
        let entry = Entry { value: value.into(), cas: self.last_cas, expires: None };
        if let Some(present) = self.spaces.get_mut(vm_id).and_then(|space| space.get_mut(key)) {
            let before = std::mem::replace(present, entry);
            self.forget(key, &before);
        } else if let Some(space) = self.spaces.get_mut(vm_id) {
            space.insert(key.into(), entry);
        } else {
            self.spaces.insert(vm_id.into(), HashMap::from([(key.into(), entry)]));
        }
        self.entries += 1;
        self.bytes += cost(key, value);
    }

    fn remove(&mut self, vm_id: &str, key: &[u8]) -> Option<Entry> {
        let entry = self.spaces.get_mut(vm_id)?.remove(key)?;
        self.forget(key, &entry);
        Some(entry)
    }

    /// An entry is there no more.
    fn forget(&mut self, key: &[u8], entry: &Entry) {
        self.entries -= 1;
        self.bytes -= cost(key, &entry.value);
        if let Some(expiry) = entry.expires {
            self.expiring.remove(&expiry);
        }
    }
}

impl Entry {
    fn expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|(at, _)| at <= now)
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &SharedData, key: &[u8], now: u64) -> Result<(Vec<u8>, u32), Status> {
        let mut out = Vec::new();
        data.read("vm", key, now, &mut out).map(|cas| (out, cas))
    }

    #[test]
    fn compare_and_swap() {
        let data = SharedData::default();
        assert_eq!(read(&data, b"k", 0), Err(Status::NotFound));
        assert_eq!(data.write("vm", b"k", b"1", 77, 0), Ok(()));
        let (value, cas) = read(&data, b"k", 0).unwrap();
        assert_eq!(value, b"1");
        assert_eq!(data.write("vm", b"k", b"2", cas + 1, 0), Err(Status::CasMismatch));
        assert_eq!(data.write("vm", b"k", b"2", cas, 0), Ok(()));
        assert_eq!(data.write("vm", b"k", b"3", cas, 0), Err(Status::CasMismatch));
        assert_eq!(data.write("vm", b"k", b"4", 0, 0), Ok(()));
        assert_eq!(read(&data, b"k", 0).unwrap().0, b"4");
        assert_eq!(data.read("other", b"k", 0, &mut Vec::new()), Err(Status::NotFound));
    }

    #[test]
    fn values_expire_and_are_deleted() {
        let data = SharedData::default();
        data.write("vm", b"k", b"1", 0, 0).unwrap();
        data.expire("vm", b"k", 10, 0).unwrap();
        assert!(read(&data, b"k", 9).is_ok());
        assert_eq!(read(&data, b"k", 10), Err(Status::NotFound));
        assert_eq!(data.expire("vm", b"k", 20, 10), Err(Status::NotFound));
        assert_eq!(data.write("vm", b"k", b"2", 999, 10), Ok(()));
        assert!(read(&data, b"k", 1_000).is_ok(), "a value written anew stays");
        assert_eq!(data.delete("vm", b"k", 0), Ok(()));
        assert_eq!(data.delete("vm", b"k", 0), Err(Status::NotFound));
        assert_eq!(data.entries(), 0);
    }

    #[test]
    fn what_is_too_much_is_refused_until_something_expires() {
        let data = SharedData::new(DataLimits { entries: 2, bytes: 300 });
        data.write("vm", b"a", b"1", 0, 0).unwrap();
        data.write("vm", b"b", b"1", 0, 0).unwrap();
        assert_eq!(data.write("vm", b"c", b"1", 0, 0), Err(Status::InternalFailure));
        data.expire("vm", b"a", 5, 0).unwrap();
        assert_eq!(data.write("vm", b"c", b"1", 0, 4), Err(Status::InternalFailure));
        assert_eq!(data.write("vm", b"c", b"1", 0, 5), Ok(()));
        assert_eq!(data.write("vm", b"c", &[0; 400], 0, 5), Err(Status::InternalFailure));
        assert_eq!(data.write("vm", b"c", b"22", 0, 5), Ok(()));
        assert_eq!(data.entries(), 2);
    }

    #[test]
    fn for_one_that_has_no_room_only_as_much_goes_as_it_needs() {
        let data = SharedData::new(DataLimits { entries: 3, bytes: 1_000 });
        for (key, at) in [(b"a", 9), (b"b", 7), (b"c", 8)] {
            data.write("vm", key, b"1", 0, 0).unwrap();
            data.expire("vm", key, at, 0).unwrap();
        }
        // What counts is said last.
        data.expire("vm", b"b", 10, 0).unwrap();
        assert_eq!(data.write("vm", b"d", b"1", 0, 20), Ok(()));
        assert_eq!(data.entries(), 3, "none was dropped but one");
        let expiring = || data.lock().expiring.values().map(|(_, key)| key[0]).collect::<Vec<u8>>();
        assert_eq!(expiring(), *b"ab");
        // What is written anew or deleted does not expire.
        data.write("vm", b"a", b"2", 0, 5).unwrap();
        data.delete("vm", b"b", 5).unwrap();
        assert!(expiring().is_empty());
        assert_eq!(data.entries(), 2);
    }
}
