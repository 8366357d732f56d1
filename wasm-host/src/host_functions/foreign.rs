//! Foreign functions: what is outside of the ABI. This crate has those about shared data; the rest is the
//! embedder's.

use wasmtime::{Caller, Linker};

use super::{ENV, Target, give_collected, outcome};
use crate::{
    abi::Status,
    embedder::{Host, Stream},
    guest::GuestSlice,
    state::State,
};

/// The foreign functions that every host made with this crate has, with their arguments.
///
/// - `clear_route_cache`: none.
/// - `leno_shared_data_delete`: the key. Answers "not found" if there is no such value.
/// - `leno_shared_data_expire`: milliseconds from now as `u64` little endian, then the key.
pub const FOREIGN_FUNCTIONS: [&str; 3] =
    ["clear_route_cache", "leno_shared_data_delete", "leno_shared_data_expire"];

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker.func_wrap(ENV, "proxy_call_foreign_function", call::<H>)?;
    Ok(())
}

fn call<H: Host>(
    mut caller: Caller<'_, State<H>>,
    name: u32,
    name_length: u32,
    arguments: u32,
    arguments_length: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        let name = GuestSlice::new(name, name_length).read(memory)?;
        let arguments = GuestSlice::new(arguments, arguments_length).read(memory)?;
        target.check(memory)?;
        state.call_foreign(name, arguments, out)
    }))
}

impl<H: Host> State<H> {
    fn call_foreign(
        &mut self,
        name: &[u8],
        arguments: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let now = self.host.now();
        let settings = self.settings.clone();
        let data = &settings.shared.data;
        match name {
            b"clear_route_cache" => {
                if let Some(context) = self.stream() {
                    context.stream.clear_route_cache();
                }
                Ok(())
            }
            b"leno_shared_data_delete" => data.delete(&self.space, arguments, now),
            b"leno_shared_data_expire" => {
                let (after, key) = arguments.split_first_chunk().ok_or(Status::BadArgument)?;
                let after = u64::from_le_bytes(*after).saturating_mul(1_000_000);
                data.expire(&self.space, key, now.saturating_add(after), now)
            }
            _ => {
                let context = self.streams.get_mut(self.effective.unwrap_or(self.current));
                let stream = context.map(|context| &mut context.stream);
                *out = self.host.call_foreign_function(stream, name, arguments)?;
                Ok(())
            }
        }
    }
}
