//! One call into the guest: its deadline, what it may not do to us, and the end of an instance that broke.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use wasmtime::{Global, Store, Trap, TypedFunc, UpdateDeadline, WasmParams, WasmResults};

use super::{
    deadline::{Deadline, thread_time},
    exports::Callback,
    together::{Row, Running},
};
use crate::{
    embedder::Host,
    engine::{Engine, ticker},
    fault::{Fault, FaultKind},
    state::State,
};

pub(crate) struct Runner<H: Host> {
    pub(crate) store: Store<State<H>>,
    engine: Engine,
    /// Ticks that a call may take before it is looked at.
    ticks: u64,
    broken: bool,
    /// Last, so that the clock runs until the store is gone.
    clock: ticker::Running,
}

impl<H: Host> Runner<H> {
    pub(crate) fn new(engine: &Engine, state: State<H>) -> Self {
        let clock = engine.ticker().run();
        let mut store = Store::new(engine.wasmtime(), state);
        store.limiter(|state| &mut state.limiter);
        let own = engine.clone();
        store.epoch_deadline_callback(move |mut context| {
            let state = context.data_mut();
            let half = state.half_deadline;
            match state.deadline.is_over(half, thread_time()) {
                true => Err(Trap::Interrupt.into()),
                false => Ok(UpdateDeadline::Continue(own.ticks(half))),
            }
        });
        Self { store, engine: engine.clone(), ticks: 1, broken: false, clock }
    }

    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        let half = deadline / 2;
        self.store.data_mut().half_deadline = half;
        self.ticks = self.engine.ticks(half);
    }

    /// Nanoseconds.
    pub(crate) fn time(&self) -> u64 {
        self.clock.time()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Calls a function of the guest in a context.
    pub(crate) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        (name, function): &(&'static str, TypedFunc<P, R>),
        context: u32,
        parameters: P,
    ) -> Result<R, Fault> {
        self.run(name, context, |store| function.call(store, parameters))
    }

    /// As [`Runner::call`]. A callback that is not there does nothing; an instance that broke says so
    /// nevertheless.
    pub(crate) fn call_if_there<P: WasmParams, R: WasmResults + Default>(
        &mut self,
        callback: &Callback<P, R>,
        context: u32,
        parameters: P,
    ) -> Result<R, Fault> {
        match callback {
            Some(callback) => self.call(callback, context, parameters),
            None if self.broken => Err(Fault::poisoned("the plugin")),
            None => Ok(R::default()),
        }
    }

    /// Runs the guest. After a fault nothing runs any more: its memory is in no state that anybody knows.
    pub(crate) fn run<R>(
        &mut self,
        name: &'static str,
        context: u32,
        run: impl FnOnce(&mut Store<State<H>>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        if self.broken {
            return Err(Fault::poisoned(name));
        }
        let state = self.store.data_mut();
        state.current = context;
        state.effective = None;
        state.limiter.refused = false;
        state.deadline = Deadline::default();
        self.store.set_epoch_deadline(self.ticks);
        let store = &mut self.store;
        let fault = match catch_unwind(AssertUnwindSafe(|| run(store))) {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) => Fault::of(name, &error, self.store.data().limiter.refused),
            Err(payload) => Fault::panic(name, &*payload),
        };
        self.broken = true;
        Err(fault)
    }

    /// Calls a row of callbacks in a context. They have one deadline together.
    pub(crate) fn row<P: WasmParams, R: WasmResults>(
        &mut self,
        row: Row,
        step: Global,
        function: &TypedFunc<P, R>,
        context: u32,
        parameters: P,
    ) -> Result<R, Fault> {
        let running = Running::new(row, step);
        self.store.data_mut().running = Some(running);
        let called = self.run(row.name(0), context, |store| function.call(store, parameters));
        let called = called.map_err(|fault| match fault.kind {
            FaultKind::Poisoned => fault,
            _ => Fault { callback: row.name(running.step(&mut self.store)), ..fault },
        });
        self.store.data_mut().catch_up(row.names().len() - 1);
        called
    }
}
