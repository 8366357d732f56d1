//! A running plugin: the callbacks of its root, and those of its streams.

use std::time::Duration;

use wasmtime::Store;

use self::{
    exports::{Exports, Finder},
    runner::Runner,
    together::Together,
};
use crate::{
    abi::{BufferType, ContextId},
    embedder::Host,
    fault::{Exit, Fault},
    limits::Limiter,
    module::LoadError,
    plugin::Plugin,
    state::{State, StreamContext},
};

mod answers;
pub(crate) mod deadline;
mod exports;
mod runner;
mod streams;
pub(crate) mod together;

/// A plugin that runs, with the streams that it sees. It belongs to one thread at a time, and every
/// callback runs to its end before the method returns.
///
/// After a [`Fault`] every method answers with [`crate::FaultKind::Poisoned`]: take your streams back
/// ([`Instance::abandon`]), drop the instance and start another one.
pub struct Instance<H: Host> {
    runner: Runner<H>,
    exports: Exports,
    /// `None` where callbacks are missing.
    together: Option<Together>,
}

/// Why a plugin did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The module is not what the ABI wants, as only a running instance shows.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no room for another instance.
    #[error("no instance: {0}")]
    NoRoom(String),
    /// It broke while it started.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// `proxy_on_vm_start` said no.
    #[error(
        "the plugin refused its virtual machine's configuration (`proxy_on_vm_start` returned 0)"
    )]
    VmStartRefused,
    /// `proxy_on_configure` said no.
    #[error("the plugin refused its configuration (`proxy_on_configure` returned 0)")]
    ConfigurationRefused,
}

impl<H: Host> Instance<H> {
    /// Instantiates the module, runs its start functions, creates the root context and configures it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(plugin: &Plugin<H>, host: H) -> Result<Self, StartError> {
        let settings = plugin.settings().clone();
        let limiter = Limiter::new(&settings.limits);
        let state = State::new(host, settings.clone(), plugin.module().abi(), limiter);
        let mut runner = Runner::new(plugin.module().engine(), state);
        runner.set_deadline(settings.limits.start_deadline);
        let exports = instantiate(&mut runner, plugin)?;
        let together = Together::of(plugin.module().engine(), &mut runner.store, &exports)
            .map_err(|error| StartError::NoRoom(format!("{error:#}")))?;
        let mut instance = Self { runner, exports, together };
        instance.configure()?;
        instance.runner.set_deadline(settings.limits.deadline);
        Ok(instance)
    }

    fn configure(&mut self) -> Result<(), StartError> {
        let root = ContextId::ROOT.number();
        self.runner.call_if_there(&self.exports.context_create, root, (root, 0))?;
        let settings = self.runner.store.data().settings.clone();
        let buffer = BufferType::VmConfiguration;
        let steps = [
            (
                &self.exports.vm_start,
                buffer,
                &settings.vm_configuration,
                StartError::VmStartRefused,
            ),
            (
                &self.exports.configure,
                BufferType::PluginConfiguration,
                &settings.configuration,
                StartError::ConfigurationRefused,
            ),
        ];
        for (callback, buffer, configuration, refused) in steps {
            let Some(callback) = callback else { continue };
            self.runner.store.data_mut().configuring = Some(buffer);
            let accepted = self.runner.call(callback, root, (root, guest_length(configuration)));
            self.runner.store.data_mut().configuring = None;
            if accepted? == 0 {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// What the embedder gave for this instance.
    pub fn host(&self) -> &H {
        &self.runner.store.data().host
    }

    /// What the embedder gave for this instance.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.runner.store.data_mut().host
    }

    /// Whether it broke and can only be dropped.
    pub fn is_broken(&self) -> bool {
        self.runner.is_broken()
    }

    /// Bytes of memory that the guest has now.
    pub fn memory_bytes(&self) -> usize {
        let store = &self.runner.store;
        store.data().memory.map_or(0, |memory| memory.data_size(store))
    }

    /// Nanoseconds of a clock that is as precise as the engine's tick and costs one load: for those who want to know about how long
    /// something took without asking the system before and after all that takes a fraction of a microsecond.
    pub fn coarse_time(&self) -> u64 {
        self.runner.time()
    }

    /// Streams that the instance sees now.
    pub fn contexts(&self) -> usize {
        self.runner.store.data().streams.len()
    }

    /// Gives the plugin a stream: `proxy_on_context_create`.
    ///
    /// # Errors
    /// A [`Fault`] of the callback. The stream is kept in any case; [`Instance::abandon`] gives it back.
    pub fn create_context(&mut self, stream: H::Stream) -> (ContextId, Result<(), Fault>) {
        let state = self.runner.store.data_mut();
        let id = state.streams.insert(StreamContext::new(stream));
        let parameters = (id, ContextId::ROOT.number());
        let created = self.runner.call_if_there(&self.exports.context_create, id, parameters);
        (ContextId(id), created)
    }

    /// A stream that was given to the plugin.
    pub fn stream(&self, context: ContextId) -> Option<&H::Stream> {
        self.runner.store.data().streams.get(context.0).map(|context| &context.stream)
    }

    /// A stream that was given to the plugin.
    pub fn stream_mut(&mut self, context: ContextId) -> Option<&mut H::Stream> {
        self.runner.store.data_mut().streams.get_mut(context.0).map(|context| &mut context.stream)
    }

    /// Takes a stream back without telling the plugin: the instance broke.
    pub fn abandon(&mut self, context: ContextId) -> Option<H::Stream> {
        self.runner.store.data_mut().streams.remove(context.0).map(|context| context.stream)
    }

    /// The period that `proxy_set_tick_period_milliseconds` set has passed.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_tick(&mut self) -> Result<(), Fault> {
        let root = ContextId::ROOT.number();
        self.runner.call_if_there(&self.exports.tick, root, root)
    }

    /// A queue that the plugin registered has something, as [`crate::QueueListener::ready`] told.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn on_queue_ready(&mut self, queue: u32) -> Result<(), Fault> {
        let root = ContextId::ROOT.number();
        self.runner.call_if_there(&self.exports.queue_ready, root, (root, queue))
    }

    /// Tells the plugin that it ends: `proxy_on_done` of the root. False: it wants to live until it
    /// calls `proxy_done`, as [`Instance::waits_for_done`] tells. Then call [`Instance::delete_root`].
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn shut_down(&mut self) -> Result<bool, Fault> {
        let root = ContextId::ROOT.number();
        let Some(done) = &self.exports.done else { return Ok(true) };
        // Set before the call: the guest may call `proxy_done` in it and then say "not yet".
        self.runner.store.data_mut().waits_for_done = false;
        let done = self.runner.call(done, root, root)? != 0;
        self.runner.store.data_mut().waits_for_done = !done;
        Ok(done)
    }

    /// Whether the plugin said that it is not done, and has not called `proxy_done` since.
    pub fn waits_for_done(&self) -> bool {
        self.runner.store.data().waits_for_done
    }

    /// The last callback: `proxy_on_delete` of the root. Drop the instance afterwards.
    ///
    /// # Errors
    /// A [`Fault`] of the callback.
    pub fn delete_root(&mut self) -> Result<(), Fault> {
        let root = ContextId::ROOT.number();
        self.runner.call_if_there(&self.exports.delete, root, root)
    }

    /// The deadline of every callback from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.runner.set_deadline(deadline);
    }
}

/// A length as the guest is told it: there is no more than that in any guest's memory.
fn guest_length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Instantiates, finds what is exported and runs the start functions: `_initialize` and `main`, or `_start`.
fn instantiate<H: Host>(runner: &mut Runner<H>, plugin: &Plugin<H>) -> Result<Exports, StartError> {
    let mut no_room = None;
    let instance = runner.run("instantiate", 0, |store| {
        plugin.linked().instantiate(&mut *store).inspect_err(|error| {
            let trapped = error.is::<wasmtime::Trap>() || error.is::<Exit>();
            no_room = (!trapped).then(|| format!("{error:#}"));
        })
    });
    let instance = match (instance, no_room) {
        (Err(_), Some(reason)) => return Err(StartError::NoRoom(reason)),
        (instance, _) => instance?,
    };
    let memory = instance.get_memory(&mut runner.store, "memory");
    let settings = plugin.settings();
    let mut finder = finder(instance, &mut runner.store, settings);
    let allocator = finder.function(plugin.module().allocator())?.map(|(_, function)| function);
    let initialize = finder.function::<(), ()>("_initialize")?;
    let main = finder.function::<(u32, u32), u32>("main")?;
    let main_without_arguments = finder.function::<(), u32>("__main_void")?;
    let start = finder.function::<(), ()>("_start")?;
    let exports = finder.exports()?;
    let state = runner.store.data_mut();
    state.memory = memory;
    state.allocator = allocator;
    match (initialize, start) {
        (Some(initialize), _) => {
            runner.call(&initialize, 0, ())?;
            if let Some(main) = main {
                runner.call(&main, 0, (0, 0))?;
            } else if let Some(main) = main_without_arguments {
                runner.call(&main, 0, ())?;
            }
        }
        (None, Some(start)) => runner.call(&start, 0, ())?,
        (None, None) => {}
    }
    Ok(exports)
}

fn finder<'a, H: Host>(
    instance: wasmtime::Instance,
    store: &'a mut Store<State<H>>,
    settings: &'a crate::plugin::PluginSettings,
) -> Finder<'a, State<H>> {
    Finder { instance, store, settings }
}

impl<H: Host> std::fmt::Debug for Instance<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.runner.store.data();
        formatter
            .debug_struct("Instance")
            .field("plugin", &state.settings.name)
            .field("contexts", &state.streams.len())
            .field("broken", &self.runner.is_broken())
            .finish_non_exhaustive()
    }
}
