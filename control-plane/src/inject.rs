//! The sidecar beside the containers of a pod: what is added to a manifest, and taken out again.

pub mod names;
