//! Callbacks that follow each other in any case, called in one go: a call into the guest takes longer than a callback that
//! does little, and one callback of the guest calling another takes next to nothing.

use wasmtime::{Extern, Global, Instance, Store, TypedFunc};

use super::exports::{Exports, HeadersCallback};
use crate::{
    abi::{MapType, StreamType},
    embedder::Host,
    engine::Engine,
    state::{Opens, State},
};

/// `together.wat`, assembled.
const MODULE: &[u8] = b"\
    \x00asm\x01\x00\x00\x00\x01\x1e\x05`\x02\x7f\x7f\x00`\x03\x7f\x7f\x7f\x01\x7f`\x01\x7f\
    \x00`\x01\x7f\x01\x7f`\x04\x7f\x7f\x7f\x7f\x01\x7f\x02\x8a\x01\x05\x06plugin\x17proxy_on\
    _context_create\x00\x00\x06plugin\x18proxy_on_request_headers\x00\x01\x06plugin\x0cproxy\
    _on_log\x00\x02\x06plugin\x0dproxy_on_done\x00\x03\x06plugin\x0fproxy_on_delete\x00\x02\
    \x03\x03\x02\x04\x02\x06\x06\x01\x7f\x01A\x00\x0b\x07\x19\x03\x04step\x03\x00\x05begin\
    \x00\x05\x06finish\x00\x06\x0a6\x02\x18\x00A\x00$\x00 \x00 \x01\x10\x00A\x01$\x00 \x00 \
    \x02 \x03\x10\x01\x0b\x1b\x00A\x00$\x00 \x00\x10\x02A\x01$\x00 \x00\x10\x03\x1aA\x02$\
    \x00 \x00\x10\x04\x0b\x00r\x04name\x00\x0e\x0dleno_together\x01%\x05\x00\x06create\x01\
    \x07headers\x02\x03log\x03\x04done\x04\x06delete\x02+\x02\x05\x04\x00\x07context\x01\x06\
    parent\x02\x05count\x03\x03end\x06\x01\x00\x07context\x07\x07\x01\x00\x04step";
/// Its name: functions of it are none of the guest's.
pub(crate) const NAME: &str = "leno_together";

/// What calls several callbacks of an instance.
pub(crate) struct Together {
    pub(crate) begin: TypedFunc<(u32, u32, u32, u32), u32>,
    pub(crate) finish: TypedFunc<u32, ()>,
    /// Which of the callbacks runs.
    pub(crate) step: Global,
}

/// Callbacks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A stream begins with the headers of its request.
    Begin,
    /// An HTTP stream ends.
    Finish,
}

/// A row that is being called.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    row: Row,
    step: Global,
    /// The step to which the state of the context was brought.
    reached: usize,
}

impl Row {
    /// The callbacks.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Begin => &["proxy_on_context_create", "proxy_on_request_headers"],
            Self::Finish => &["proxy_on_log", "proxy_on_done", "proxy_on_delete"],
        }
    }

    /// The name of a callback of it.
    pub(crate) fn name(self, step: usize) -> &'static str {
        self.names().get(step).or(self.names().first()).copied().unwrap_or_default()
    }
}

impl Running {
    pub(crate) fn new(row: Row, step: Global) -> Self {
        Self { row, step, reached: 0 }
    }

    /// Which of the callbacks runs, or ran when the guest broke.
    pub(crate) fn step(self, store: impl wasmtime::AsContextMut) -> usize {
        self.step.get(store).i32().and_then(|step| usize::try_from(step).ok()).unwrap_or(0)
    }
}

impl Together {
    /// For an instance that has all of the callbacks; `None` for others, whose callbacks are called one by one.
    pub(crate) fn of<H: Host>(
        engine: &Engine,
        store: &mut Store<State<H>>,
        exports: &Exports,
    ) -> wasmtime::Result<Option<Self>> {
        let HeadersCallback::WithEnd(_, headers) = &exports.request_headers else {
            return Ok(None);
        };
        let (Some((_, create)), Some((_, log)), Some((_, done)), Some((_, delete))) =
            (&exports.context_create, &exports.log, &exports.done, &exports.delete)
        else {
            return Ok(None);
        };
        let callbacks = [create.func(), headers.func(), log.func(), done.func(), delete.func()];
        let callbacks = callbacks.map(|callback| Extern::Func(*callback));
        let instance = Instance::new(&mut *store, engine.together()?, &callbacks)?;
        let step = instance.get_global(&mut *store, "step");
        Ok(Some(Self {
            begin: instance.get_typed_func(&mut *store, "begin")?,
            finish: instance.get_typed_func(&mut *store, "finish")?,
            step: step.ok_or_else(|| wasmtime::Error::msg("no `step`"))?,
        }))
    }
}

/// Compiles what all instances of an engine have in common.
pub(crate) fn compile(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Module> {
    wasmtime::Module::from_binary(engine, MODULE)
}

/// What the headers of a request make accessible.
pub(crate) const REQUEST_HEADERS: Opens =
    Opens { map: Some(MapType::RequestHeaders), buffer: None };

impl<H: Host> State<H> {
    /// Does what is to be done between the callbacks of a row, up to the one that runs: whatever they call finds
    /// everything as if each had been called by itself.
    pub(crate) fn catch_up(&mut self, step: usize) {
        let Some(running) = &mut self.running else { return };
        let row = running.row;
        while running.reached < step {
            running.reached += 1;
            self.effective = None;
            if let Some(context) = self.streams.get_mut(self.current) {
                match row {
                    Row::Begin => context.enter(StreamType::Request, REQUEST_HEADERS),
                    // Only while it is logged everything can be read.
                    Row::Finish => context.logging = false,
                }
            }
        }
        if running.reached + 1 >= row.names().len() {
            // Nothing follows.
            self.running = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_what_its_text_says() {
        assert_eq!(wat::parse_str(include_str!("together.wat")).unwrap(), MODULE);
    }
}
