//! A plugin: a module with its configuration and limits, linked and ready to be started any number of times.

use std::{collections::BTreeSet, sync::Arc};

use wasmtime::{FuncType, InstancePre, Linker, Val};

use crate::{
    abi::Status,
    embedder::Host,
    host_functions,
    limits::Limits,
    module::{LoadError, Module},
    shared::Shared,
    state::State,
    wasi::{self, Errno},
};

/// A module with its settings. Cheap to clone, and common to all threads; each starts its own
/// [`crate::Instance`] of it.
pub struct Plugin<H: Host> {
    module: Module,
    settings: Arc<PluginSettings>,
    linked: InstancePre<State<H>>,
}

/// How a module is configured.
#[derive(Clone, Debug, Default)]
pub struct PluginSettings {
    /// The name of the plugin (property `plugin_name`).
    pub name: String,
    /// Which of several plugins in the module this is (property `plugin_root_id`).
    pub root_id: String,
    /// The name of the space of shared data and queues (property `plugin_vm_id`). Plugins that name the same have it in
    /// common, whatever their modules; those that name none have that of the empty name in common.
    pub vm_id: String,
    /// Whose plugin it is. Spaces are their owner's: those of another owner cannot be named.
    pub owner: String,
    /// What `proxy_on_configure` reads.
    pub configuration: Vec<u8>,
    /// What `proxy_on_vm_start` reads.
    pub vm_configuration: Vec<u8>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// What an instance may use.
    pub limits: Limits,
    /// The functions that the plugin may call, and the callbacks that it may be called by, with the names of
    /// the ABI and WASI; `None`: all. A function that is not among them answers "internal failure"
    /// (10), one of WASI "not capable" (76); a callback is not called.
    pub capabilities: Option<BTreeSet<String>>,
    /// The data, queues and metrics that the plugin shares with others.
    pub shared: Shared,
}

impl PluginSettings {
    /// The space of shared data and queues that is meant by `vm_id`. No owner has a `/` in its name.
    pub(crate) fn space(&self, vm_id: &str) -> String {
        format!("{}/{vm_id}", self.owner)
    }

    pub(crate) fn allows(&self, capability: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|allowed| allowed.contains(capability))
    }
}

impl<H: Host> Plugin<H> {
    /// Links a module.
    ///
    /// # Errors
    /// [`LoadError::Import`] for an import that no Proxy-Wasm host has.
    pub fn new(module: &Module, mut settings: PluginSettings) -> Result<Self, LoadError> {
        settings.shared.metrics = settings.shared.metrics.of_plugin(&settings.name);
        let linked = link(module, &settings).and_then(|linked| {
            // Here there is time to compile; where an instance starts there is none.
            module.engine().together()?;
            module.engine().respond()?;
            Ok(linked)
        });
        let linked = linked.map_err(|error| LoadError::Import(format!("{error:#}")))?;
        Ok(Self { module: module.clone(), settings: Arc::new(settings), linked })
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The settings.
    pub fn settings(&self) -> &Arc<PluginSettings> {
        &self.settings
    }

    pub(crate) fn linked(&self) -> &InstancePre<State<H>> {
        &self.linked
    }
}

fn link<H: Host>(
    module: &Module,
    settings: &PluginSettings,
) -> wasmtime::Result<InstancePre<State<H>>> {
    let mut linker = Linker::new(module.engine().wasmtime());
    host_functions::link(&mut linker)?;
    wasi::link(&mut linker)?;
    let linked = linker.instantiate_pre(module.wasmtime())?;
    if settings.capabilities.is_none() {
        return Ok(linked);
    }
    linker.allow_shadowing(true);
    for import in module.wasmtime().imports().filter(|import| !settings.allows(import.name())) {
        if let Some(signature) = import.ty().func() {
            forbid(&mut linker, import.module(), import.name(), signature.clone())?;
        }
    }
    linker.instantiate_pre(module.wasmtime())
}

fn forbid<H: Host>(
    linker: &mut Linker<State<H>>,
    module: &str,
    name: &str,
    signature: FuncType,
) -> wasmtime::Result<()> {
    let answer = if wasi::MODULES.contains(&module) {
        Errno::NotCapable as i32
    } else {
        Status::InternalFailure as i32
    };
    linker.func_new(module, name, signature, move |_, _, results| {
        results.fill(Val::I32(answer));
        Ok(())
    })?;
    Ok(())
}

impl<H: Host> Clone for Plugin<H> {
    fn clone(&self) -> Self {
        Self {
            module: self.module.clone(),
            settings: self.settings.clone(),
            linked: self.linked.clone(),
        }
    }
}

impl<H: Host> std::fmt::Debug for Plugin<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Plugin")
            .field("name", &self.settings.name)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}
