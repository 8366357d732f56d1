//! End-to-end tests (`e2e/`) and the architecture as a test (`arch.rs`); nothing of its own.
