//! Properties: what the guest asks about the stream and its surroundings by a path.

use wasmtime::{Caller, Linker};

use super::{ENV, Target, give_collected, outcome, parts, status};
use crate::{
    abi::Status,
    embedder::{Host, Stream},
    guest::GuestSlice,
    properties,
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker.func_wrap(ENV, "proxy_get_property", property::<H>)?.func_wrap(
        ENV,
        "proxy_set_property",
        set_property::<H>,
    )?;
    Ok(())
}

fn property<H: Host>(
    mut caller: Caller<'_, State<H>>,
    path: u32,
    path_length: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        let path = GuestSlice::new(path, path_length).read(memory)?;
        state.read_property(path, out)
    }))
}

impl<H: Host> State<H> {
    fn read_property(&mut self, path: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        let own = match path {
            b"plugin_name" => Some(&self.settings.name),
            b"plugin_root_id" => Some(&self.settings.root_id),
            b"plugin_vm_id" => Some(&self.settings.vm_id),
            _ => None,
        };
        if let Some(own) = own {
            out.extend_from_slice(own.as_bytes());
            return Ok(());
        }
        let context = self.streams.get(self.effective.unwrap_or(self.current));
        if properties::is_object(path, context.is_some()) {
            return Err(Status::SerializationFailure);
        }
        let value = match context {
            Some(context) => match properties::of_headers(&context.stream, path, out) {
                Some(answer) => return answer,
                None => context.stream.property(path)?,
            },
            None => self.host.property(path)?,
        };
        out.extend_from_slice(&value);
        Ok(())
    }
}

/// Values are kept by streams; the plugin itself has nowhere to keep one.
fn set_property<H: Host>(
    mut caller: Caller<'_, State<H>>,
    path: u32,
    path_length: u32,
    value: u32,
    value_length: u32,
) -> u32 {
    let mut set = || {
        let (memory, state) = parts(&mut caller)?;
        let path = GuestSlice::new(path, path_length).read(memory)?;
        let value = GuestSlice::new(value, value_length).read(memory)?;
        let context = state.stream().ok_or(Status::NotFound)?;
        context.stream.set_property(path, value)
    };
    status(set())
}
