//! The engine: how modules are compiled, and the clock that interrupts guests.

use std::{
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
    time::Duration,
};

use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use self::ticker::Ticker;
use crate::instance::together;

pub(crate) mod ticker;

/// Compiles modules and runs their instances. Cheap to clone; one per process is enough.
///
/// While it has instances, a thread of its own advances the clock on which guests are interrupted.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: wasmtime::Engine,
    settings: EngineSettings,
    ticker: Ticker,
    /// Made when the first plugin is linked: where there is none it would be made for nothing.
    together: OnceLock<Result<wasmtime::Module, String>>,
}

/// How an engine is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// How precise deadlines are, and how often the thread wakes up while there are instances.
    /// Default 1 ms.
    pub tick: Duration,
    /// Bytes of native stack that a guest may use. Default 512 KiB: a worker's thread has 2 MiB, and
    /// host functions need some of the rest.
    pub stack_bytes: usize,
    /// Bytes that a module may have. Default 64 MiB; the largest plugin known to us has 16.
    pub module_bytes: usize,
    /// Where memories of instances come from.
    pub allocation: Allocation,
    /// Compiles with all cores, in about half the time on two. Default false: where requests are
    /// served, their threads must not wait for a compiler.
    pub parallel_compilation: bool,
}

/// Where the memory of an instance comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Mapped when the instance starts. Default: instances are kept for as long as their plugin lives,
    /// so that a faster start buys nothing, and a pool would have to be sized in advance. The
    /// README has the figures.
    OnDemand,
    /// Taken from slots that are reserved when the engine is made: for hosts that make an instance
    /// for every request.
    Pooled {
        /// Instances that there may be at once.
        instances: u32,
        /// Bytes of memory that each may have at most.
        memory_bytes: usize,
    },
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(1),
            stack_bytes: 512 << 10,
            module_bytes: 64 << 20,
            allocation: Allocation::OnDemand,
            parallel_compilation: false,
        }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
#[error("the Wasm engine cannot be made: {0}")]
pub struct EngineError(String);

/// Instances of modules that an instance of a plugin consists of: its own, and what calls its callbacks.
pub(crate) const INSTANCES: u32 = 2;

/// Functions of a backtrace that are told. Deep recursion has thousands of the same.
const BACKTRACE_FRAMES: NonZeroUsize = NonZeroUsize::new(16).unwrap();

impl Engine {
    /// Makes an engine and its thread.
    ///
    /// # Errors
    /// If the machine does not allow for what is asked: no native code for this processor, no
    /// address space for the pool, no more threads.
    pub fn new(settings: EngineSettings) -> Result<Self, EngineError> {
        let engine = wasmtime::Engine::new(&config(&settings))
            .map_err(|error| EngineError(format!("{error:#}")))?;
        let ticker = Ticker::new(engine.weak(), settings.tick)
            .map_err(|error| EngineError(format!("no thread: {error}")))?;
        Ok(Self { inner: Arc::new(Inner { engine, settings, ticker, together: OnceLock::new() }) })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.engine
    }

    pub(crate) fn settings(&self) -> &EngineSettings {
        &self.inner.settings
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.inner.ticker
    }

    /// The module that calls callbacks of plugins in a row.
    pub(crate) fn together(&self) -> wasmtime::Result<&wasmtime::Module> {
        let compile =
            || together::compile(&self.inner.engine).map_err(|error| format!("{error:#}"));
        let made = self.inner.together.get_or_init(compile);
        made.as_ref().map_err(|error| wasmtime::Error::msg(error.clone()))
    }

    /// How many ticks a deadline is. The tick under way counts as none, hence one more.
    pub(crate) fn ticks(&self, deadline: Duration) -> u64 {
        let tick = self.inner.settings.tick.as_nanos().max(1);
        u64::try_from(deadline.as_nanos().div_ceil(tick)).unwrap_or(u64::MAX >> 1).max(1) + 1
    }
}

fn config(settings: &EngineSettings) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(settings.stack_bytes)
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(settings.parallel_compilation)
        .wasm_backtrace_max_frames(Some(BACKTRACE_FRAMES))
        // What no SDK emits is not offered: less to attack, and no second memory to account for.
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    if let Allocation::Pooled { instances, memory_bytes } = settings.allocation {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_core_instances(instances.saturating_mul(INSTANCES))
            .total_memories(instances)
            .total_tables(instances)
            .max_memory_size(memory_bytes)
            .table_elements(100_000);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("settings", &self.inner.settings).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_rounded_up_to_ticks() {
        let settings =
            EngineSettings { tick: Duration::from_millis(10), ..EngineSettings::default() };
        let engine = Engine::new(settings).unwrap();
        for (milliseconds, ticks) in [(0, 2), (1, 2), (10, 2), (11, 3), (50, 6)] {
            let found = engine.ticks(Duration::from_millis(milliseconds));
            assert_eq!(found, ticks, "{milliseconds}");
        }
        assert!(engine.ticks(Duration::MAX) > 1 << 60);
    }

    #[test]
    fn the_clock_runs_only_while_there_are_instances() {
        let engine = Engine::new(EngineSettings::default()).unwrap();
        let running = engine.ticker().run();
        assert_eq!(engine.ticker().instances(), 1);
        drop(running);
        assert_eq!(engine.ticker().instances(), 0);
    }
}
