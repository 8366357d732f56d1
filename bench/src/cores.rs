//! Which core runs what: the proxy has one to itself, load generator and origin share the other.
//!
//! A child inherits the affinity of the thread that starts it, and so do all threads it starts
//! later: pinning before the start leaves no thread behind, and a program that sizes itself by the
//! cores it sees (most do) sees one.

use std::num::NonZeroU64;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};

/// The two cores of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    pub proxy: usize,
    pub load: usize,
}

/// Confines the calling thread, and what it starts from now on, to `core`.
pub fn pin(core: usize) -> Result<()> {
    anyhow::ensure!(core < CpuSet::MAX_CPU, "core {core}: this system has no such core");
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| {
        format!("cannot run on core {core}; choose with --proxy-core and --load-core")
    })
}

/// Runs `start` on `core`, then returns the calling thread to `home`.
pub fn on_core<T>(core: usize, home: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    pin(core)?;
    let started = start();
    pin(home)?;
    started
}

/// Wakes the calling thread as exactly as the timer can: the default slack of 50 µs would be
/// measured as latency of every proxy.
pub fn wake_exactly() -> Result<()> {
    set_current_timer_slack(NonZeroU64::new(1)).context("set the timer slack")
}

/// Allows as many open files as the system lets us have; thousands of connections need them.
pub fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raise the limit of open files")
}

/// Gives this process and what it starts the niceness `nice`: on a machine shared with builds, a
/// negative one keeps them off both cores (it needs root).
pub fn prioritise(nice: i32) -> Result<()> {
    setpriority_process(None, nice).with_context(|| format!("cannot set niceness {nice}"))
}
