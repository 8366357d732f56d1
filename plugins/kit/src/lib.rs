//! What the plugins in this workspace have in common.
//!
//! - [`configuration`]: strict, with errors that name the place.
//! - [`field`]: names and texts that may be header fields; [`period`]: "500ms", "1m".
//! - [`shared_data`]: the host's shared data, with every answer as a value. The SDK panics where the store
//!   is full, and a panic is the end of an instance.

pub mod configuration;
pub mod field;
pub mod period;
pub mod shared_data;
