//! Pointers of the guest. They are numbers: bytes are reached only through the memory as it is now,
//! so nothing can be kept across a call into the guest, which may move or grow its memory.

use std::marker::PhantomData;

use crate::abi::Status;

/// Where the guest wants a `T` written.
#[derive(Debug)]
pub(crate) struct GuestPtr<T> {
    address: u32,
    of: PhantomData<fn(T)>,
}

impl<T> Clone for GuestPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for GuestPtr<T> {}

/// Bytes of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestSlice {
    start: u32,
    length: u32,
}

/// A number that can be written into a guest: little endian, at any address.
pub(crate) trait GuestValue: Copy {
    /// The bytes of it.
    type Bytes: AsRef<[u8]>;
    fn bytes(self) -> Self::Bytes;
}

impl GuestValue for u32 {
    type Bytes = [u8; 4];
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl GuestValue for u64 {
    type Bytes = [u8; 8];
    fn bytes(self) -> [u8; 8] {
        self.to_le_bytes()
    }
}

impl<T: GuestValue> GuestPtr<T> {
    pub(crate) fn new(address: u32) -> Self {
        Self { address, of: PhantomData }
    }

    /// Whether a `T` fits there.
    pub(crate) fn check(self, memory: &[u8]) -> Result<(), Status> {
        GuestSlice::new(self.address, size_of::<T>() as u32).read(memory).map(|_| ())
    }

    pub(crate) fn write(self, memory: &mut [u8], value: T) -> Result<(), Status> {
        let target = GuestSlice::new(self.address, size_of::<T>() as u32).write(memory)?;
        target.copy_from_slice(value.bytes().as_ref());
        Ok(())
    }
}

impl GuestSlice {
    pub(crate) fn new(start: u32, length: u32) -> Self {
        Self { start, length }
    }

    pub(crate) fn read(self, memory: &[u8]) -> Result<&[u8], Status> {
        let start = self.start as usize;
        memory.get(start..start + self.length as usize).ok_or(Status::InvalidMemoryAccess)
    }

    pub(crate) fn write(self, memory: &mut [u8]) -> Result<&mut [u8], Status> {
        let start = self.start as usize;
        memory.get_mut(start..start + self.length as usize).ok_or(Status::InvalidMemoryAccess)
    }

    pub(crate) fn start(self) -> u32 {
        self.start
    }
}

/// Reads a `u32` that the guest stored, as the vectors of WASI have them.
pub(crate) fn read_u32(memory: &[u8], address: u32) -> Result<u32, Status> {
    let bytes = GuestSlice::new(address, 4).read(memory)?;
    bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Status::InvalidMemoryAccess)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_inside_of_the_memory() {
        let mut memory = [1_u8, 2, 3, 4];
        for (start, length, expected) in [
            (0, 4, Some(&[1_u8, 2, 3, 4][..])),
            (4, 0, Some(&[])),
            (3, 1, Some(&[4])),
            (3, 2, None),
            (5, 0, None),
            (u32::MAX, u32::MAX, None),
            (0, u32::MAX, None),
        ] {
            let slice = GuestSlice::new(start, length);
            assert_eq!(slice.read(&memory).ok(), expected, "{start} {length}");
            assert_eq!(slice.write(&mut memory).is_ok(), expected.is_some());
        }
    }

    #[test]
    fn numbers_are_little_endian_and_may_be_unaligned() {
        let mut memory = [0_u8; 9];
        GuestPtr::<u64>::new(1).write(&mut memory, 0x0102).unwrap();
        assert_eq!(memory, [0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read_u32(&memory, 1), Ok(0x0102));
        assert!(GuestPtr::<u64>::new(2).write(&mut memory, 1).is_err());
        assert!(GuestPtr::<u32>::new(5).check(&memory).is_ok());
        assert!(GuestPtr::<u32>::new(6).check(&memory).is_err());
    }
}
