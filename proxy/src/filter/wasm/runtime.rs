//! From bytes to plugins: compiled or taken from the cache, started once to see that they do, then linked for all
//! workers.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use leno_api::model::wasm_plugin::{Limits as Allowed, WasmPlugin};
use leno_wasm_host::{
    CacheError, Digest, Engine, EngineSettings, Instance, Limits, Metrics, Module, PluginSettings,
    Shared, StartError, WeakModule,
};
use rustc_hash::FxHashMap;

use super::{
    host::{ProxyHost, Said},
    plugin::{Needs, Plugin},
};

/// A worker waits while an instance starts there. Whoever took a second on the side thread may take some of them, but
/// not all that the resource allows: it must not be able to be quick once and slow for ever after.
const START_MARGIN: u32 = 10;

/// What all plugins of the process have in common.
pub struct Runtime {
    engine: Engine,
    shared: Shared,
    cache: Option<PathBuf>,
    /// Those in use: several plugins may run the same one, with settings of their own.
    modules: Mutex<FxHashMap<Digest, WeakModule>>,
}

/// Why bytes did not become a plugin. What it says is for the one who wrote the resource.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is no plugin, or cannot be linked.
    #[error(transparent)]
    Module(#[from] leno_wasm_host::LoadError),
    /// It did not start.
    #[error("it does not start: {error}{}", its_log(.said))]
    Start {
        /// What became of the start.
        error: StartError,
        /// What the plugin itself logged meanwhile; empty if nothing.
        said: String,
    },
}

impl Runtime {
    /// `cache`: where native code is kept; `None` for nowhere.
    ///
    /// # Errors
    /// Where this machine cannot run plugins.
    pub fn new(cache: Option<PathBuf>) -> Result<Self, String> {
        let engine = Engine::new(EngineSettings::default()).map_err(|error| error.to_string())?;
        Ok(Self { engine, shared: Shared::default(), cache, modules: Mutex::default() })
    }

    /// Compiles a module or takes it from the cache, and starts one instance of it to see that it starts and takes its
    /// configuration. Blocks, for seconds with a large module. `label`: `shop/tag`; `digest`: of `bytes`, as whoever
    /// got them has found it.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        &self,
        label: &str,
        digest: [u8; 32],
        bytes: &[u8],
        spec: &WasmPlugin,
    ) -> Result<Arc<Plugin>, LoadError> {
        let module = match self.at_hand(label, Digest::from_bytes(digest))? {
            Some(module) => module,
            None => self.compile(label, bytes)?,
        };
        self.start(label, module, spec)
    }

    /// The same for a module of which there is native code already: its bytes are not needed. `None` if there is none.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_cached(
        &self,
        label: &str,
        digest: [u8; 32],
        spec: &WasmPlugin,
    ) -> Result<Option<Arc<Plugin>>, LoadError> {
        let module = self.at_hand(label, Digest::from_bytes(digest))?;
        module.map(|module| self.start(label, module, spec)).transpose()
    }

    fn start(
        &self,
        label: &str,
        module: Module,
        spec: &WasmPlugin,
    ) -> Result<Arc<Plugin>, LoadError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut settings = self.settings(label, spec);
        let started = Instant::now();
        let trial = PluginSettings { shared: self.on_trial(), ..settings.clone() };
        let trial = leno_wasm_host::Plugin::new(&module, trial)?;
        let said = Said::default();
        let tried = Instance::start(&trial, ProxyHost::on_trial(label, said.clone()));
        drop(tried.map_err(|error| LoadError::Start { error, said: said.text() })?);
        let limits = &mut settings.limits;
        let usual = (started.elapsed() * START_MARGIN).max(limits.deadline);
        limits.start_deadline = limits.start_deadline.min(usual);
        Ok(Arc::new(Plugin {
            label: label.into(),
            version: Self::version_of(*module.digest().bytes(), spec).into(),
            kind: spec.kind,
            failure: spec.failure,
            needs: needs(&module),
            figures: Arc::default(),
            id: NEXT.fetch_add(1, Relaxed),
            linked: leno_wasm_host::Plugin::new(&module, settings)?,
        }))
    }

    /// What an instance shares with others that may be refused: it reads what there is, and takes nothing away.
    fn on_trial(&self) -> Shared {
        let Shared { data, queues, metrics } = &self.shared;
        Shared { data: data.clone(), queues: queues.on_trial(), metrics: metrics.on_trial() }
    }

    /// What a plugin of this module with these settings says as its version: where it is the same, the plugin is.
    pub fn version_of(digest: [u8; 32], spec: &WasmPlugin) -> String {
        version(&hex(&digest), spec)
    }

    /// What plugins have defined and counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// In use by another plugin, or in the cache.
    fn at_hand(&self, label: &str, digest: Digest) -> Result<Option<Module>, LoadError> {
        let known = self.modules().get(&digest).and_then(WeakModule::upgrade);
        if known.is_some() {
            return Ok(known);
        }
        let cached = self.cached(label, digest)?;
        cached.iter().for_each(|module| self.remember(module));
        Ok(cached)
    }

    fn remember(&self, module: &Module) {
        let mut modules = self.modules();
        modules.retain(|_, known| known.upgrade().is_some());
        modules.insert(module.digest(), module.downgrade());
    }

    fn modules(&self) -> MutexGuard<'_, FxHashMap<Digest, WeakModule>> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache may be wrong in any way: then the module is compiled.
    fn cached(&self, label: &str, digest: Digest) -> Result<Option<Module>, LoadError> {
        let Some(cache) = &self.cache else { return Ok(None) };
        match Module::load_cached(&self.engine, cache, digest) {
            Ok(module) => Ok(module),
            Err(CacheError::Module(error)) => Err(error.into()),
            Err(error) => {
                tracing::warn!("plugin {label}: {error}; it is compiled again");
                Ok(None)
            }
        }
    }

    fn compile(&self, label: &str, bytes: &[u8]) -> Result<Module, LoadError> {
        let module = Module::compile(&self.engine, bytes)?;
        self.remember(&module);
        if let Some(cache) = &self.cache
            && let Err(error) = module.save(cache)
        {
            tracing::warn!("plugin {label}: it will be compiled again after a restart: {error}");
        }
        Ok(module)
    }

    fn settings(&self, label: &str, spec: &WasmPlugin) -> PluginSettings {
        PluginSettings {
            name: label.to_owned(),
            root_id: spec.plugin_name.clone(),
            vm_id: spec.vm_id.clone(),
            // One proxy runs plugins of several namespaces: its own, those it calls, the mesh's.
            owner: spec.name.namespace.to_string(),
            configuration: spec.configuration.to_vec(),
            vm_configuration: Vec::new(),
            environment: spec.environment.clone(),
            limits: limits(&spec.limits),
            capabilities: spec.capabilities.clone(),
            shared: self.shared.clone(),
        }
    }
}

fn its_log(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("; its log: {said}") }
}

fn limits(allowed: &Allowed) -> Limits {
    Limits {
        memory_bytes: usize::try_from(allowed.memory_bytes).unwrap_or(usize::MAX),
        deadline: allowed.deadline,
        start_deadline: allowed.start_deadline,
        ..Limits::default()
    }
}

/// What a module exports and imports says what it can be told and can do. SDKs leave out what a plugin does not use.
fn needs(module: &Module) -> Needs {
    let exports = |names: [&str; 2]| module.exports().any(|export| names.contains(&export));
    let imports = |names: &[&str]| module.imports().any(|import| names.contains(&import));
    // Properties tell of heads, too.
    let reads = imports(&[
        "proxy_get_header_map_value",
        "proxy_get_header_map_pairs",
        "proxy_get_header_map_size",
        "proxy_get_property",
    ]);
    Needs {
        request_body: exports(["proxy_on_request_body", "proxy_on_request_trailers"]),
        response_body: exports(["proxy_on_response_body", "proxy_on_response_trailers"]),
        edits: imports(&["proxy_set_buffer_bytes"]),
        heads: reads
            || imports(&[
                "proxy_add_header_map_value",
                "proxy_replace_header_map_value",
                "proxy_remove_header_map_value",
                "proxy_set_header_map_pairs",
            ]),
        bodies: imports(&[
            "proxy_get_buffer_bytes",
            "proxy_get_buffer_status",
            "proxy_set_buffer_bytes",
        ]),
        reads,
        interrupts: imports(&["proxy_send_local_response", "proxy_close_stream"]),
        logs: imports(&["proxy_log", "fd_write"]),
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Twelve digits of the module's digest and eight of what it is run with.
fn version(module: &str, spec: &WasmPlugin) -> String {
    let settings = format!(
        "{:?}",
        (
            &spec.plugin_name,
            &spec.configuration,
            &spec.environment,
            &spec.vm_id,
            &spec.limits,
            spec.failure,
            &spec.capabilities,
            spec.kind,
        )
    );
    let settings = Digest::of(settings.as_bytes()).to_string();
    format!("{module:.12}-{settings:.8}")
}

impl fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Runtime").field("cache", &self.cache).finish_non_exhaustive()
    }
}
