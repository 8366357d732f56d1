//! What people type, one file per command.

pub mod analyze;
pub mod apply;
pub mod ca;
pub mod cache;
pub mod check;
pub mod control_plane;
pub mod delete;
pub mod diff;
pub mod get;
pub mod inject;
pub mod install;
pub mod join;
pub mod leave;
mod load;
pub mod proxy_config;
pub mod redirect;
mod selection;
pub mod shop;
pub mod token;
pub mod uninstall;
