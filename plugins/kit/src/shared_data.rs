//! Data that all instances of a plugin share, on all workers of a proxy: values by key, with
//! compare-and-swap.

#[cfg(target_arch = "wasm32")]
pub use self::host::HostData;
pub use self::in_memory::InMemory;

#[cfg(target_arch = "wasm32")]
mod host;
mod in_memory;

/// Shared data: the host's, or [`InMemory`] in tests.
pub trait SharedData {
    /// A value, with the number by which it is swapped.
    fn read(&self, key: &[u8]) -> Option<(Vec<u8>, u32)>;

    /// Writes a value, if it is as `expected` says.
    ///
    /// # Errors
    /// See [`WriteError`].
    fn write(&self, key: &[u8], value: &[u8], expected: Expected) -> Result<(), WriteError>;

    /// Lets a value be forgotten after a time. Hosts that cannot do this keep it: whoever reads it has to
    /// look at its age nevertheless.
    fn expire(&self, key: &[u8], milliseconds: u64);
}

/// What a value must be like to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// As it was read, with this number.
    Unchanged(u32),
    /// Not there.
    Absent,
    /// Anything.
    Anything,
}

impl Expected {
    /// The number for the ABI: 0 writes in any case, any other only if it is the value's or there is no
    /// value. No host has come as far as the last.
    fn number(self) -> u32 {
        match self {
            Self::Unchanged(number) => number,
            Self::Absent => u32::MAX,
            Self::Anything => 0,
        }
    }
}

/// Why a value was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Somebody else wrote it since it was read.
    Changed,
    /// The host has no room, or does not let this plugin write.
    Refused,
}
