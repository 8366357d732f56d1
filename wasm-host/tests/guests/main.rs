//! Guests in WebAssembly text for every function of the host, and for every way in which a guest breaks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../kit/embedder.rs"]
mod embedder;

mod calls;
mod functions;
mod fuzz;
mod isolation;
mod lifecycle;
mod loading;
mod phases;
mod random;
mod script;
mod targets;
mod together;
mod wasi;
