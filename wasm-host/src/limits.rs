//! What one instance may use, and the engine's hook that holds it to that.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::engine::INSTANCES;

/// What one instance of a plugin may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory. Default 64 MiB: Go plugins with rule sets need tens of them.
    pub memory_bytes: usize,
    /// Elements of all tables together. Default 100,000: the largest Go plugins have 20,000 functions.
    pub table_elements: usize,
    /// How long one callback may run. Default 50 ms. Rounded up to the engine's tick. The second half of it is by what the
    /// thread has run, so that a busy machine ends no callback; but after ten times as long it ends in any case.
    /// Callbacks that follow each other in any case have it together: the first two of an HTTP stream
    /// ([`crate::Instance::begin`]) and the last three ([`crate::Instance::finish`]).
    pub deadline: Duration,
    /// How long each callback of the start may run: the start function, `proxy_on_vm_start`,
    /// `proxy_on_configure`. Default 2 s: rule sets are compiled there.
    pub start_deadline: Duration,
    /// HTTP and gRPC calls that may be under way at once. Default 1,000.
    pub calls: usize,
    /// Metrics that may be defined. Default 1,000, since each is a line of every scrape.
    pub metrics: usize,
    /// Bytes that a buffer may have once the guest has put more into it, and those of the body of its own answer. Default
    /// 4 MiB: what is longer is for streaming. Without it a guest makes the host copy its memory again and again.
    pub buffer_bytes: usize,
    /// Bytes of names and values that a guest may write into the headers and trailers of one stream. Default 1 MiB, as
    /// much as a list of them may have.
    pub header_bytes: usize,
    /// Bytes of one log line; the rest is cut off. Default 16 KiB.
    pub log_line_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            table_elements: 100_000,
            deadline: Duration::from_millis(50),
            start_deadline: Duration::from_secs(2),
            calls: 1_000,
            metrics: 1_000,
            buffer_bytes: 4 << 20,
            header_bytes: crate::pairs::MAX_BYTES,
            log_line_bytes: 16 << 10,
        }
    }
}

/// A module has one memory; what WebAssembly allows beyond that no plugin uses.
const MEMORIES: usize = 1;
/// Tables that an instance may have. Compilers make one.
const TABLES: usize = 4;

/// Counts what an instance grows, and refuses what is too much.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_bytes: usize,
    table_elements: usize,
    used_elements: usize,
    /// Whether something was refused since this was last reset.
    pub(crate) refused: bool,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes: limits.memory_bytes,
            table_elements: limits.table_elements,
            used_elements: 0,
            refused: false,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired <= self.memory_bytes;
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.used_elements.saturating_add(desired.saturating_sub(current));
        let allowed = used <= self.table_elements;
        if allowed {
            self.used_elements = used;
        }
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES
    }

    fn tables(&self) -> usize {
        TABLES
    }
}
