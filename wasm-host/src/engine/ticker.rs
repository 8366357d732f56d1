//! The thread that advances an engine's clock, asleep while there is no instance.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use wasmtime::EngineWeak;

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    started: Instant,
    /// Nanoseconds since then, as of the last tick.
    time: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    instances: usize,
    ended: bool,
}

/// Keeps the clock running. Each instance has one.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
}

impl Ticker {
    pub(crate) fn new(engine: EngineWeak, tick: Duration) -> io::Result<Self> {
        let clock = Clock { started: Instant::now(), time: AtomicU64::new(0) };
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, clock });
        let ticking = shared.clone();
        thread::Builder::new().name("wasm-ticker".to_owned()).spawn(move || {
            while ticking.wait_for_instances() {
                thread::sleep(tick);
                ticking.clock.advance();
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        })?;
        Ok(Self { shared })
    }

    /// Starts the clock if it rests.
    pub(crate) fn run(&self) -> Running {
        // While it rested nobody did. A tick under way may bring it forward by less than a tick.
        self.shared.clock.advance();
        self.shared.change(|state| state.instances += 1);
        Running { shared: self.shared.clone() }
    }

    #[cfg(test)]
    pub(crate) fn instances(&self) -> usize {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).instances
    }
}

impl Running {
    /// Nanoseconds of the clock, as of the last tick: what costs less to read than a clock does.
    pub(crate) fn time(&self) -> u64 {
        self.shared.clock.time.load(Relaxed)
    }
}

impl Clock {
    /// To what it is now; never back, since threads may come here in any order.
    fn advance(&self) {
        let time = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.time.fetch_max(time, Relaxed);
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// False once the engine is gone.
    fn wait_for_instances(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| state.instances == 0 && !state.ended;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        !state.ended
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.change(|state| state.ended = true);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.change(|state| state.instances = state.instances.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_right_at_once_after_a_rest() {
        let engine = wasmtime::Engine::default();
        // So long that no tick comes to the help of the first reading.
        let ticker = Ticker::new(engine.weak(), Duration::from_secs(3600)).unwrap();
        let begun = ticker.shared.clock.started;
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(2));
            let least = begun.elapsed();
            let running = ticker.run();
            let time = Duration::from_nanos(running.time());
            assert!(time >= least, "{time:?} is before {least:?}");
        }
    }
}
