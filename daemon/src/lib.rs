//! What both binaries need as processes. Closed list: nothing else belongs here.
//!
//! - [`background`]: work that may wait, on threads of low priority.
//! - [`logs`]: structured logs on standard error, levels changeable at run time.
//! - [`shutdown`]: SIGTERM and SIGINT, the first politely, the second at once.
//! - [`exposition`]: metrics as Prometheus text, with those of the process itself.
//! - [`files`]: how many files may be open.
//! - [`memory`]: what the allocator keeps and nobody uses goes back to the system.

pub mod background;
pub mod exposition;
pub mod files;
pub mod logs;
pub mod memory;
pub mod shutdown;
