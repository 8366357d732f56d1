//! Log, clock, timer, contexts, configuration of 0.1.0, status of calls.

use std::time::Duration;

use wasmtime::{Caller, Linker};

use super::{ENV, Target, any_parts, give_collected, outcome, parts, status};
use crate::{
    abi::{LogLevel, Status},
    embedder::Host,
    guest::{GuestPtr, GuestSlice},
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_log", log::<H>)?
        .func_wrap(ENV, "proxy_get_log_level", log_level::<H>)?
        .func_wrap(ENV, "proxy_get_current_time_nanoseconds", current_time::<H>)?
        .func_wrap(ENV, "proxy_set_tick_period_milliseconds", set_tick_period::<H>)?
        .func_wrap(ENV, "proxy_set_effective_context", set_effective_context::<H>)?
        .func_wrap(ENV, "proxy_done", done::<H>)?
        .func_wrap(ENV, "proxy_get_configuration", configuration::<H>)?
        .func_wrap(ENV, "proxy_get_status", call_status::<H>)?
        // Every module made by em++ tells that its memory grew; there is nothing to do.
        .func_wrap(ENV, "emscripten_notify_memory_growth", |_memory: u32| {})?
        .func_wrap(ENV, "pthread_equal", |one: u32, other: u32| u32::from(one == other))?;
    Ok(())
}

fn log<H: Host>(mut caller: Caller<'_, State<H>>, level: u32, data: u32, size: u32) -> u32 {
    let mut log = || {
        let level = LogLevel::from_guest(level)?;
        let (memory, state) = any_parts(&mut caller)?;
        let message = GuestSlice::new(data, size).read(memory)?;
        write_line(state, level, message);
        Ok(())
    };
    status(log())
}

/// Hands a line to the host, cut to the limit, unless its level is not wanted.
pub(crate) fn write_line<H: Host>(state: &mut State<H>, level: LogLevel, message: &[u8]) {
    if level < state.host.log_level() {
        return;
    }
    let length = message.len().min(state.settings.limits.log_line_bytes);
    state.host.log(level, message.get(..length).unwrap_or(message));
}

fn log_level<H: Host>(mut caller: Caller<'_, State<H>>, result: u32) -> u32 {
    let mut read = || {
        let (memory, state) = any_parts(&mut caller)?;
        GuestPtr::new(result).write(memory, state.host.log_level() as u32)
    };
    status(read())
}

fn current_time<H: Host>(mut caller: Caller<'_, State<H>>, result: u32) -> u32 {
    let mut read = || {
        let (memory, state) = any_parts(&mut caller)?;
        GuestPtr::<u64>::new(result).write(memory, state.host.now())
    };
    status(read())
}

fn set_tick_period<H: Host>(mut caller: Caller<'_, State<H>>, milliseconds: u32) -> u32 {
    let mut set = || {
        let (_, state) = parts(&mut caller)?;
        let period = (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()));
        state.host.set_tick_period(period);
        Ok(())
    };
    status(set())
}

fn set_effective_context<H: Host>(mut caller: Caller<'_, State<H>>, context: u32) -> u32 {
    status(parts(&mut caller).and_then(|(_, state)| state.set_effective(context)))
}

/// Only a root that said "not yet" when it was told to end has something to say here.
fn done<H: Host>(mut caller: Caller<'_, State<H>>) -> u32 {
    let mut done = || {
        let (_, state) = parts(&mut caller)?;
        if !std::mem::take(&mut state.waits_for_done) {
            return Err(Status::NotFound);
        }
        Ok(())
    };
    status(done())
}

/// 0.1.0: the configuration that belongs to the callback.
fn configuration<H: Host>(
    mut caller: Caller<'_, State<H>>,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |_, state, out| {
        out.extend_from_slice(state.configuration().unwrap_or_default());
        Ok(())
    }))
}

fn call_status<H: Host>(
    mut caller: Caller<'_, State<H>>,
    code: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        GuestPtr::new(code).write(memory, state.answer.status)?;
        out.extend_from_slice(&state.answer.status_message);
        Ok(())
    }))
}
