//! The functions of `env.` that guests import, one module for each subject. Statuses and memory conventions
//! are those of the ABI as plugins in the field know it; where that differs from the specification's
//! text the function says so.

use wasmtime::{Caller, Linker};

use crate::{
    abi::Status,
    embedder::Host,
    guest::{GuestPtr, GuestSlice},
    state::State,
};

mod buffers;
mod calls;
mod foreign;
mod headers;
mod metrics;
mod properties;
mod runtime;
mod shared;
mod streams;

pub use self::foreign::FOREIGN_FUNCTIONS;
pub(crate) use self::runtime::write_line;

/// The module name under which guests import these.
const ENV: &str = "env";

/// Why a host function stops: with a status for the guest, or because the guest's own allocator trapped.
pub(crate) enum Stop {
    Status(Status),
    Trap(wasmtime::Error),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// What the guest gets of a function that cannot trap.
fn status(result: Result<(), Status>) -> u32 {
    result.err().unwrap_or(Status::Ok) as u32
}

/// What the guest gets of a function that calls its allocator.
fn outcome(result: Result<(), Stop>) -> wasmtime::Result<u32> {
    match result {
        Ok(()) => Ok(Status::Ok as u32),
        Err(Stop::Status(status)) => Ok(status as u32),
        Err(Stop::Trap(error)) => Err(error),
    }
}

/// The guest's memory and everything else, at once. While the module starts there is no context, and
/// while its allocator runs on our behalf nothing may change under us: logging and WASI are allowed then,
/// and nothing else.
fn parts<'a, H: Host>(
    caller: &'a mut Caller<'_, State<H>>,
) -> Result<(&'a mut [u8], &'a mut State<H>), Status> {
    let state = caller.data();
    if state.current == 0 || state.allocating {
        return Err(Status::InternalFailure);
    }
    if let Some(running) = state.running {
        let step = running.step(&mut *caller);
        caller.data_mut().catch_up(step);
    }
    any_parts(caller)
}

/// As [`parts`], also while the module starts.
pub(crate) fn any_parts<'a, H: Host>(
    caller: &'a mut Caller<'_, State<H>>,
) -> Result<(&'a mut [u8], &'a mut State<H>), Status> {
    let memory = match caller.data().memory {
        Some(memory) => memory,
        // The start section of a module runs before anybody has looked for its memory.
        None => caller
            .get_export("memory")
            .and_then(wasmtime::Extern::into_memory)
            .ok_or(Status::InvalidMemoryAccess)?,
    };
    Ok(memory.data_and_store_mut(caller))
}

/// Memory from the guest's allocator. This runs the guest: everything read from its memory before is stale.
fn allocate<H: Host>(caller: &mut Caller<'_, State<H>>, size: u32) -> Result<GuestSlice, Stop> {
    let state = caller.data_mut();
    // Taken rather than cloned: a clone counts references to its type, which costs as much as the call.
    let allocator = state.allocator.take().ok_or(Status::InternalFailure)?;
    state.allocating = true;
    let address = allocator.call(&mut *caller, size);
    let state = caller.data_mut();
    state.allocating = false;
    state.allocator = Some(allocator);
    match address.map_err(Stop::Trap)? {
        0 => Err(Status::InvalidMemoryAccess.into()),
        address => Ok(GuestSlice::new(address, size)),
    }
}

/// Where a guest wants to know the address and the length of what it is given.
#[derive(Clone, Copy)]
struct Target {
    address: GuestPtr<u32>,
    length: GuestPtr<u32>,
}

impl Target {
    fn new(address: u32, length: u32) -> Self {
        Self { address: GuestPtr::new(address), length: GuestPtr::new(length) }
    }

    /// Whether both can be written: before anything is allocated for nothing.
    fn check(self, memory: &[u8]) -> Result<(), Status> {
        self.address.check(memory)?;
        self.length.check(memory)
    }

    fn write(self, memory: &mut [u8], address: u32, length: u32) -> Result<(), Status> {
        self.address.write(memory, address)?;
        self.length.write(memory, length)
    }

    /// Gives bytes to the guest, in memory that is the guest's from then on: what `fill` writes there. No bytes: no memory.
    fn give_by<H: Host>(
        self,
        caller: &mut Caller<'_, State<H>>,
        length: u32,
        fill: impl FnOnce(&mut State<H>, &mut [u8]),
    ) -> Result<(), Stop> {
        self.check(parts(caller)?.0)?;
        self.give_checked(caller, length, fill)
    }

    /// As [`Target::give_by`], where it is known already that both can be written.
    fn give_checked<H: Host>(
        self,
        caller: &mut Caller<'_, State<H>>,
        length: u32,
        fill: impl FnOnce(&mut State<H>, &mut [u8]),
    ) -> Result<(), Stop> {
        if length == 0 {
            return Ok(self.write(any_parts(caller)?.0, 0, 0)?);
        }
        let target = allocate(caller, length)?;
        // The caller has asked for them before, and the guest goes no step further within a call of the host.
        let (memory, state) = any_parts(caller)?;
        fill(state, target.write(memory)?);
        Ok(self.write(memory, target.start(), length)?)
    }
}

/// Collects bytes in the instance's scratch memory, then gives them to the guest.
fn give_collected<H: Host>(
    caller: &mut Caller<'_, State<H>>,
    target: Target,
    collect: impl FnOnce(&mut [u8], &mut State<H>, &mut Vec<u8>) -> Result<(), Status>,
) -> Result<(), Stop> {
    let mut scratch = std::mem::take(&mut caller.data_mut().scratch);
    scratch.clear();
    let collected = parts(caller).and_then(|(memory, state)| {
        collect(memory, state, &mut scratch)?;
        target.check(memory)?;
        u32::try_from(scratch.len()).map_err(|_| Status::InternalFailure)
    });
    let given = collected.map_err(Stop::from).and_then(|length| {
        target.give_checked(caller, length, |_, target| target.copy_from_slice(&scratch))
    });
    caller.data_mut().scratch = scratch;
    given
}

/// Puts every function of the ABI, of all its versions, into a linker.
pub(crate) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    runtime::link(linker)?;
    headers::link(linker)?;
    buffers::link(linker)?;
    streams::link(linker)?;
    calls::link(linker)?;
    shared::link(linker)?;
    metrics::link(linker)?;
    properties::link(linker)?;
    foreign::link(linker)
}
