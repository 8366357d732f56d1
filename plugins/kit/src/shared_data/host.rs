//! The host's shared data, by the ABI's own functions: the SDK panics at every status it does not expect.

#![expect(
    unsafe_code,
    reason = "the ABI is C functions; this file is the only one that calls them"
)]

use std::ptr::null_mut;

use super::{Expected, SharedData, WriteError};

/// The shared data of the proxy in which the plugin runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostData;

const OK: u32 = 0;
const CHANGED: u32 = 8;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_shared_data(
        key: *const u8,
        key_length: usize,
        value: *mut *mut u8,
        value_length: *mut usize,
        number: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_length: usize,
        value: *const u8,
        value_length: usize,
        number: u32,
    ) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_length: usize,
        arguments: *const u8,
        arguments_length: usize,
        result: *mut *mut u8,
        result_length: *mut usize,
    ) -> u32;
}

impl SharedData for HostData {
    fn read(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        let (mut value, mut length, mut number) = (null_mut(), 0, 0);
        // SAFETY: `key` lives until the call returns, and the other pointers are to our own variables.
        let status = unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), &mut value, &mut length, &mut number)
        };
        (status == OK).then(|| (take(value, length), number))
    }

    fn write(&self, key: &[u8], value: &[u8], expected: Expected) -> Result<(), WriteError> {
        let number = expected.number();
        // SAFETY: both slices live until the call returns; the host copies them.
        let status = unsafe {
            proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), number)
        };
        match status {
            OK => Ok(()),
            CHANGED => Err(WriteError::Changed),
            _ => Err(WriteError::Refused),
        }
    }

    fn expire(&self, key: &[u8], milliseconds: u64) {
        let name = b"leno_shared_data_expire";
        let arguments = [&milliseconds.to_le_bytes()[..], key].concat();
        let (mut result, mut length) = (null_mut(), 0);
        // SAFETY: as above. What a host without this function answers, it answers without a result.
        unsafe {
            proxy_call_foreign_function(
                name.as_ptr(),
                name.len(),
                arguments.as_ptr(),
                arguments.len(),
                &mut result,
                &mut length,
            );
        }
        drop(take(result, length));
    }
}

/// What the host gave is ours: it is from this module's allocator.
fn take(bytes: *mut u8, length: usize) -> Vec<u8> {
    if bytes.is_null() {
        return Vec::new();
    }
    // SAFETY: the host asked `proxy_on_memory_allocate` of the SDK for `length` bytes, which makes a `Vec`
    // of that capacity and forgets it; the host filled all of them.
    unsafe { Vec::from_raw_parts(bytes, length, length) }
}
