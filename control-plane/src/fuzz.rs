//! Fuzz targets (`fuzz/`): none of them may panic, whatever the bytes are.

pub use crate::xds::fuzz::requests;
