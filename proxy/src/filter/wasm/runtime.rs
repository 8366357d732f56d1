//! From bytes to plugins: compiled or taken from the cache, started once to see that they do, then linked for all
//! workers.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use leno_api::model::wasm_plugin::{Limits as Allowed, WasmPlugin};
use leno_wasm_host::{
    CacheError, Digest, Engine, EngineSettings, Instance, Limits, Metrics, Module, PluginSettings,
    Shared, StartError,
};

use super::{
    host::ProxyHost,
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
}

/// Why bytes did not become a plugin. What it says is for the one who wrote the resource.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not those that the digest names.
    #[error("the module is not the one that was asked for: its sha256 is {found}")]
    Digest {
        /// What the bytes have.
        found: String,
    },
    /// It is no plugin, or cannot be linked.
    #[error(transparent)]
    Module(#[from] leno_wasm_host::LoadError),
    /// It did not start.
    #[error("it does not start: {0}")]
    Start(#[from] StartError),
}

impl Runtime {
    /// `cache`: where native code is kept; `None` for nowhere.
    ///
    /// # Errors
    /// Where this machine cannot run plugins.
    pub fn new(cache: Option<PathBuf>) -> Result<Self, String> {
        let engine = Engine::new(EngineSettings::default()).map_err(|error| error.to_string())?;
        Ok(Self { engine, shared: Shared::default(), cache })
    }

    /// Compiles a module or takes it from the cache, and starts one instance of it to see that it starts and takes its
    /// configuration. Blocks, for seconds with a large module. `label`: `shop/tag`.
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
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let found = Digest::of(bytes);
        if *found.bytes() != digest {
            return Err(LoadError::Digest { found: found.to_string() });
        }
        let module = self.module(label, found, bytes)?;
        let mut settings = self.settings(label, spec);
        let started = Instant::now();
        let trial = leno_wasm_host::Plugin::new(&module, settings.clone())?;
        drop(Instance::start(&trial, ProxyHost::on_trial(label))?);
        let limits = &mut settings.limits;
        let usual = (started.elapsed() * START_MARGIN).max(limits.deadline);
        limits.start_deadline = limits.start_deadline.min(usual);
        Ok(Arc::new(Plugin {
            label: label.into(),
            version: Self::version_of(digest, spec).into(),
            kind: spec.kind,
            failure: spec.failure,
            needs: needs(&module),
            figures: Arc::default(),
            id: NEXT.fetch_add(1, Relaxed),
            linked: leno_wasm_host::Plugin::new(&module, settings)?,
        }))
    }

    /// What a plugin of this module with these settings says as its version: where it is the same, the plugin is.
    pub fn version_of(digest: [u8; 32], spec: &WasmPlugin) -> String {
        version(&hex(&digest), spec)
    }

    /// What plugins have defined and counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The cache may be wrong in any way: then the module is compiled.
    fn module(&self, label: &str, digest: Digest, bytes: &[u8]) -> Result<Module, LoadError> {
        let Some(cache) = &self.cache else { return Ok(Module::compile(&self.engine, bytes)?) };
        match Module::load_cached(&self.engine, cache, digest) {
            Ok(Some(module)) => return Ok(module),
            Ok(None) => {}
            Err(CacheError::Module(error)) => return Err(error.into()),
            Err(error) => tracing::warn!("plugin {label}: {error}; it is compiled again"),
        }
        let module = Module::compile(&self.engine, bytes)?;
        if let Err(error) = module.save(cache) {
            tracing::warn!("plugin {label}: it will be compiled again after a restart: {error}");
        }
        Ok(module)
    }

    fn settings(&self, label: &str, spec: &WasmPlugin) -> PluginSettings {
        PluginSettings {
            name: label.to_owned(),
            root_id: spec.plugin_name.clone(),
            // As in other hosts: plugins that name no space of their own share one.
            vm_id: String::new(),
            configuration: spec.configuration.to_vec(),
            vm_configuration: Vec::new(),
            environment: spec.environment.clone(),
            limits: limits(&spec.limits),
            capabilities: spec.capabilities.clone(),
            shared: self.shared.clone(),
        }
    }
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
    Needs {
        request_body: exports(["proxy_on_request_body", "proxy_on_request_trailers"]),
        response_body: exports(["proxy_on_response_body", "proxy_on_response_trailers"]),
        edits: imports(&["proxy_set_buffer_bytes"]),
        reads: imports(&[
            "proxy_get_header_map_value",
            "proxy_get_header_map_pairs",
            "proxy_get_header_map_size",
            "proxy_get_property",
        ]),
        interrupts: imports(&["proxy_send_local_response", "proxy_close_stream"]),
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
