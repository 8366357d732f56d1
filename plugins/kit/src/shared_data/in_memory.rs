//! Shared data in a map: for the tests of plugins.

use std::{cell::RefCell, collections::BTreeMap};

use super::{Expected, SharedData, WriteError};

/// Shared data of a test.
#[derive(Debug, Default)]
pub struct InMemory {
    values: RefCell<BTreeMap<Vec<u8>, Value>>,
    refusals: RefCell<Vec<WriteError>>,
}

/// Its bytes, and how often it was written.
type Value = (Vec<u8>, u32);

impl InMemory {
    /// The next writes fail so, the last of `errors` first.
    pub fn refuse(&self, errors: &[WriteError]) {
        self.refusals.borrow_mut().extend_from_slice(errors);
    }
}

impl SharedData for InMemory {
    fn read(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.values.borrow().get(key).cloned()
    }

    fn write(&self, key: &[u8], value: &[u8], expected: Expected) -> Result<(), WriteError> {
        if let Some(error) = self.refusals.borrow_mut().pop() {
            return Err(error);
        }
        let mut values = self.values.borrow_mut();
        let number = values.get(key).map_or(0, |(_, number)| *number);
        if number != 0 && ![0, number].contains(&expected.number()) {
            return Err(WriteError::Changed);
        }
        values.insert(key.to_vec(), (value.to_vec(), number + 1));
        Ok(())
    }

    fn expire(&self, _key: &[u8], _milliseconds: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_only_what_was_read() {
        let data = InMemory::default();
        assert_eq!(data.write(b"k", b"1", Expected::Absent), Ok(()));
        assert_eq!(data.write(b"k", b"2", Expected::Absent), Err(WriteError::Changed));
        let (value, number) = data.read(b"k").unwrap();
        assert_eq!(value, b"1");
        assert_eq!(data.write(b"k", b"2", Expected::Unchanged(number)), Ok(()));
        assert_eq!(data.write(b"k", b"3", Expected::Unchanged(number)), Err(WriteError::Changed));
        assert_eq!(data.write(b"k", b"3", Expected::Anything), Ok(()));
    }
}
