//! Bodies, data of connections, configurations, messages.

use wasmtime::{Caller, Linker};

use super::{ENV, Target, outcome, parts, status};
use crate::{
    abi::{BufferType, Status},
    embedder::{BufferEdit, Host, Stream},
    guest::{GuestPtr, GuestSlice},
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_get_buffer_bytes", bytes::<H>)?
        .func_wrap(ENV, "proxy_get_buffer_status", buffer_status::<H>)?
        .func_wrap(ENV, "proxy_set_buffer_bytes", set_bytes::<H>)?;
    Ok(())
}

fn bytes<H: Host>(
    mut caller: Caller<'_, State<H>>,
    buffer: u32,
    start: u32,
    most: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let mut give = || {
        let buffer = BufferType::from_guest(buffer)?;
        let (_, state) = parts(&mut caller)?;
        let available = state.buffer_length(buffer)?;
        if start.checked_add(most).is_none() {
            return Err(Status::BadArgument.into());
        }
        let count = available.saturating_sub(start).min(most);
        Target::new(address, length).give_by(&mut caller, count, |state, target| {
            state.copy_buffer(buffer, start as usize, target);
        })
    };
    outcome(give())
}

fn buffer_status<H: Host>(
    mut caller: Caller<'_, State<H>>,
    buffer: u32,
    length: u32,
    flags: u32,
) -> u32 {
    let mut tell = || {
        let buffer = BufferType::from_guest(buffer)?;
        let (memory, state) = parts(&mut caller)?;
        let available = state.buffer_length(buffer)?;
        GuestPtr::<u32>::new(flags).check(memory)?;
        GuestPtr::new(length).write(memory, available)?;
        // No flag has been given a meaning.
        GuestPtr::new(flags).write(memory, 0_u32)
    };
    status(tell())
}

/// Three forms: in front (nothing is dropped), in front with a first part dropped, behind. A change in
/// the middle is refused, though the specification's text allows it.
fn set_bytes<H: Host>(
    mut caller: Caller<'_, State<H>>,
    buffer: u32,
    start: u32,
    size: u32,
    data: u32,
    length: u32,
) -> u32 {
    let mut set = || {
        let buffer = BufferType::from_guest(buffer)?;
        let (memory, state) = parts(&mut caller)?;
        let available = state.buffer_length(buffer)?;
        let bytes = GuestSlice::new(data, length).read(memory)?;
        let dropped = if start == 0 { size.min(available) as usize } else { 0 };
        let limit = state.settings.limits.buffer_bytes;
        let whole = available as usize - dropped + bytes.len();
        // What came from elsewhere may be longer, and may always be made shorter.
        if !bytes.is_empty() && whole > limit {
            return Err(Status::InternalFailure);
        }
        let context = state.streams.get_mut(state.effective.unwrap_or(state.current));
        let context = context.filter(|context| context.buffer_is_open(buffer));
        let context = context.filter(|_| buffer.of_stream()).ok_or(Status::BadArgument)?;
        let edit = match start {
            0 => BufferEdit::Front { dropped, bytes },
            start if start >= available => BufferEdit::Append(bytes),
            _ => return Err(Status::BadArgument),
        };
        let more = bytes.len().saturating_sub(dropped);
        if more > 0 && !context.runs(buffer) && !state.host.may_grow(&context.stream, buffer, more)
        {
            return Err(Status::InternalFailure);
        }
        context.stream.edit_buffer(buffer, edit);
        Ok(())
    };
    status(set())
}

impl<H: Host> State<H> {
    /// The configuration that belongs to the callback that runs.
    pub(super) fn configuration(&self) -> Option<&[u8]> {
        match self.configuring? {
            BufferType::VmConfiguration => Some(&self.settings.vm_configuration),
            _ => Some(&self.settings.configuration),
        }
    }

    /// The bytes of a buffer that belongs to no stream, where there are any now.
    fn own_buffer(&self, buffer: BufferType) -> Option<&[u8]> {
        match buffer {
            BufferType::HttpCallBody => self.answer.body.as_deref(),
            BufferType::GrpcMessage => self.answer.message.as_deref(),
            BufferType::VmConfiguration => Some(&self.settings.vm_configuration),
            BufferType::PluginConfiguration => self
                .configuring
                .filter(|buffer| *buffer == BufferType::PluginConfiguration)
                .map(|_| &self.settings.configuration[..]),
            // In the callbacks of the start these are the configuration, as plugins find it elsewhere.
            BufferType::ForeignArguments => {
                self.answer.foreign.as_deref().or_else(|| self.configuration())
            }
            _ => None,
        }
    }

    /// The length of a buffer. One that is not there is empty, but the answer of a call and the
    /// plugin's configuration are "not found": so plugins find it elsewhere.
    fn buffer_length(&mut self, buffer: BufferType) -> Result<u32, Status> {
        let length = if buffer.of_stream() {
            let context = self.stream().filter(|context| context.buffer_is_open(buffer));
            context.map_or(0, |context| context.stream.buffer_length(buffer))
        } else {
            let own = self.own_buffer(buffer).map(<[u8]>::len);
            let absent_is_empty =
                !matches!(buffer, BufferType::HttpCallBody | BufferType::PluginConfiguration);
            own.or(absent_is_empty.then_some(0)).ok_or(Status::NotFound)?
        };
        u32::try_from(length).map_err(|_| Status::InternalFailure)
    }

    fn copy_buffer(&mut self, buffer: BufferType, start: usize, target: &mut [u8]) {
        if buffer.of_stream() {
            if let Some(context) = self.stream() {
                context.stream.copy_buffer(buffer, start, target);
            }
            return;
        }
        let bytes =
            self.own_buffer(buffer).and_then(|bytes| bytes.get(start..start + target.len()));
        if let Some(bytes) = bytes {
            target.copy_from_slice(bytes);
        }
    }
}
