//! The callbacks for a response that came whole, called in one go: see [`super::together`].

use wasmtime::{Extern, Global, Instance, Store, TypedFunc};

use super::{
    exports::{Exports, HeadersCallback},
    together::{Row, Running},
};
use crate::{embedder::Host, engine::Engine, state::State};

/// `respond.wat`, assembled.
const MODULE: &[u8] = b"\
    \x00asm\x01\x00\x00\x00\x01\x10\x02`\x03\x7f\x7f\x7f\x01\x7f`\x03\x7f\x7f\x7f\x02\x7f\
    \x7f\x02D\x02\x06plugin\x19proxy_on_response_headers\x00\x00\x06plugin\x16proxy_on_resp\
    onse_body\x00\x00\x03\x02\x01\x01\x06\x0b\x02\x7f\x01A\x00\x0b\x7f\x01A\x00\x0b\x07\x19\
    \x03\x04step\x03\x00\x04stop\x03\x01\x07respond\x00\x02\x0a3\x011\x01\x01\x7fA\x00$\x00\
    A\x00$\x01 \x00 \x01A\x00\x10\x00!\x03 \x03#\x01r\x04@A\x00 \x03\x0f\x0bA\x01$\x00A\x01\
    \x20\x00 \x02A\x01\x10\x01\x0b\x00Y\x04name\x00\x0e\x0dleno_together\x01\x10\x02\x00\
    \x07headers\x01\x04body\x02!\x01\x02\x04\x00\x07context\x01\x05count\x02\x04size\x03\
    \x06action\x07\x0d\x02\x00\x04step\x01\x04stop";

/// What calls both callbacks of an instance.
pub(crate) struct Respond {
    /// Context, headers, bytes of the body; which callback was the last, and what it returned.
    pub(crate) respond: TypedFunc<(u32, u32, u32), (u32, u32)>,
    step: Global,
    stop: Global,
}

impl Respond {
    /// For an instance that has both callbacks; `None` for others.
    pub(crate) fn of<H: Host>(
        engine: &Engine,
        store: &mut Store<State<H>>,
        exports: &Exports,
    ) -> wasmtime::Result<Option<Self>> {
        let HeadersCallback::WithEnd(_, headers) = &exports.response_headers else {
            return Ok(None);
        };
        let Some((_, body)) = &exports.response_body else { return Ok(None) };
        let callbacks = [headers.func(), body.func()].map(|callback| Extern::Func(*callback));
        let instance = Instance::new(&mut *store, engine.respond()?, &callbacks)?;
        let mut global = |name| {
            let global = instance.get_global(&mut *store, name);
            global.ok_or_else(|| wasmtime::Error::msg(format!("no `{name}`")))
        };
        let (step, stop) = (global("step")?, global("stop")?);
        let respond = instance.get_typed_func(&mut *store, "respond")?;
        Ok(Some(Self { respond, step, stop }))
    }

    /// For one call.
    pub(crate) fn running(&self) -> Running {
        Running::new(Row::Respond, self.step).stopped_by(self.stop)
    }
}

/// Compiles what all instances of an engine have in common.
pub(crate) fn compile(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Module> {
    wasmtime::Module::from_binary(engine, MODULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_what_its_text_says() {
        assert_eq!(wat::parse_str(include_str!("respond.wat")).unwrap(), MODULE);
    }
}
