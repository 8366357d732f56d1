//! `leno` as people run it: as a process.

#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod api;
mod cache;
mod demo;
mod identity;
mod inject;
mod install;
mod machine;
mod plugin;
mod process;
