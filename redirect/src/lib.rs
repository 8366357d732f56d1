//! Rules of the kernel that lead an application's connections through the sidecar.
//!
//! ```text
//! flags ─▶ Plan ─▶ rules (pure) ─▶ text ─▶ nft or iptables-restore ─▶ read back and compared
//! options  plan    rules           nft, iptables     run, tool
//! ```
//! A container runtime asks for the same by [`cni`] and [`plugin`].
//!
//! The plan becomes one list of rules; [`nft`] and [`iptables`] write that list down in the words of either tool. Each
//! tool is given one transaction: the kernel takes all of it or nothing.

pub mod cni;
pub mod iptables;
mod loopback;
pub mod nft;
pub mod options;
pub mod plan;
pub mod plugin;
pub mod rules;
pub mod run;
mod tool;

pub use options::{Command, RedirectArgs};
pub use plan::Plan;
pub use run::{Error, execute};
