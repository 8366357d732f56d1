//! Shared data and shared queues.

use std::borrow::Cow;

use wasmtime::{Caller, Linker};

use super::{ENV, Target, give_collected, outcome, parts, status};
use crate::{
    embedder::Host,
    guest::{GuestPtr, GuestSlice},
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_set_shared_data", set_data::<H>)?
        .func_wrap(ENV, "proxy_get_shared_data", data::<H>)?
        .func_wrap(ENV, "proxy_register_shared_queue", register_queue::<H>)?
        .func_wrap(ENV, "proxy_resolve_shared_queue", resolve_queue::<H>)?
        .func_wrap(ENV, "proxy_enqueue_shared_queue", enqueue::<H>)?
        .func_wrap(ENV, "proxy_dequeue_shared_queue", dequeue::<H>)?;
    Ok(())
}

fn set_data<H: Host>(
    mut caller: Caller<'_, State<H>>,
    key: u32,
    key_length: u32,
    value: u32,
    value_length: u32,
    cas: u32,
) -> u32 {
    let mut set = || {
        let (memory, state) = parts(&mut caller)?;
        let key = GuestSlice::new(key, key_length).read(memory)?;
        let value = GuestSlice::new(value, value_length).read(memory)?;
        let now = state.host.now();
        state.settings.shared.data.write(&state.space, key, value, cas, now)
    };
    status(set())
}

fn data<H: Host>(
    mut caller: Caller<'_, State<H>>,
    key: u32,
    key_length: u32,
    address: u32,
    length: u32,
    cas: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        let key = GuestSlice::new(key, key_length).read(memory)?;
        let now = state.host.now();
        let found = state.settings.shared.data.read(&state.space, key, now, out)?;
        GuestPtr::new(cas).write(memory, found)
    }))
}

fn register_queue<H: Host>(
    mut caller: Caller<'_, State<H>>,
    name: u32,
    name_length: u32,
    result: u32,
) -> u32 {
    let mut register = || {
        let (memory, state) = parts(&mut caller)?;
        GuestPtr::<u32>::new(result).check(memory)?;
        let name = GuestSlice::new(name, name_length).read(memory)?;
        let listener = state.host.queue_listener();
        let (queues, plugin) = (&state.settings.shared.queues, &state.settings.name);
        let token = queues.register(plugin, &state.space, name, &listener)?;
        GuestPtr::new(result).write(memory, token)
    };
    status(register())
}

fn resolve_queue<H: Host>(
    mut caller: Caller<'_, State<H>>,
    vm_id: u32,
    vm_id_length: u32,
    name: u32,
    name_length: u32,
    result: u32,
) -> u32 {
    let mut resolve = || {
        let (memory, state) = parts(&mut caller)?;
        let vm_id = GuestSlice::new(vm_id, vm_id_length).read(memory)?;
        let name = GuestSlice::new(name, name_length).read(memory)?;
        // An empty id is the plugin's own.
        let space = match vm_id {
            [] => Cow::Borrowed(&*state.space),
            _ => Cow::Owned(state.settings.space(&String::from_utf8_lossy(vm_id))),
        };
        let token = state.settings.shared.queues.resolve(&space, name)?;
        GuestPtr::new(result).write(memory, token)
    };
    status(resolve())
}

fn enqueue<H: Host>(mut caller: Caller<'_, State<H>>, token: u32, item: u32, length: u32) -> u32 {
    let mut enqueue = || {
        let (memory, state) = parts(&mut caller)?;
        let item = GuestSlice::new(item, length).read(memory)?;
        state.settings.shared.queues.enqueue(token, item)
    };
    status(enqueue())
}

/// An item that cannot be given because the guest's pointers are bad stays in the queue.
fn dequeue<H: Host>(
    mut caller: Caller<'_, State<H>>,
    token: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        target.check(memory)?;
        out.extend_from_slice(&state.settings.shared.queues.dequeue(token)?);
        Ok(())
    }))
}
