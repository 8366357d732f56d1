//! `WasmPlugin`.

mod capability;
mod source;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::Value;

pub use self::source::{OciReference, Source};
use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        applies::{Applies, parse_applies},
        backend::port_number,
        http_route::check_count,
        pattern::check_list,
        quantity,
        range::Fields,
        service::Subsets,
        workload::Workload,
    },
    resource::read,
    spec::wasm_plugin as raw,
};

/// Of `match`, `ports` and `vmConfig.env`: more belong into plugins of their own.
const MAX_ENTRIES: usize = 64;
/// Of `capabilities`: the ABI and WASI together have about 110 names.
const MAX_CAPABILITIES: usize = 256;
const MAX_PLUGIN_NAME: usize = 256;
const MAX_VM_ID: usize = 256;
/// Of an environment variable. Every instance holds a copy of them all.
const MAX_ENV_NAME: usize = 256;
const MAX_ENV_VALUE: usize = 4096;
const MEBIBYTE: u64 = 1 << 20;
/// Nothing that a compiler makes starts in less than a page or two; Go needs some MiB.
const MIN_MEMORY: u64 = MEBIBYTE;
/// Each worker may use as much for each plugin.
const MAX_MEMORY: u64 = 1024 * MEBIBYTE;
const DEFAULT_MEMORY: u64 = 64 * MEBIBYTE;
const MIN_DEADLINE: Duration = Duration::from_millis(1);
/// All other connections of the worker wait meanwhile.
const MAX_DEADLINE: Duration = Duration::from_secs(1);
const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);
/// Starting holds a worker up, too, though only once for each version.
const MAX_START_DEADLINE: Duration = Duration::from_secs(30);
const DEFAULT_START_DEADLINE: Duration = Duration::from_secs(2);
const MAX_WINDOW: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// A plugin and where it runs.
#[derive(Clone, Debug)]
pub struct WasmPlugin {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown.
    pub created: String,
    /// For which workloads, or for calls to which services.
    pub applies: Applies,
    /// Where the module is.
    pub source: Source,
    /// What the module must be; always known for http and https.
    pub sha256: Option<[u8; 32]>,
    /// When it runs.
    pub phase: Phase,
    /// Higher goes first within a phase.
    pub priority: i32,
    /// Which traffic it sees; at least one.
    pub matches: Vec<Match>,
    /// What it works on.
    pub kind: PluginType,
    /// The root id.
    pub plugin_name: String,
    /// What the plugin is configured with.
    pub configuration: Arc<[u8]>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// The space of shared data and queues within its namespace; empty for the one of all that name none.
    pub vm_id: String,
    /// What an instance may use.
    pub limits: Limits,
    /// What becomes of a request when the plugin cannot run.
    pub failure: FailurePolicy,
    /// The functions and callbacks it may use; `None`: all.
    pub capabilities: Option<BTreeSet<String>>,
    /// Whether a new version gets a part of the traffic first.
    pub canary: Option<Canary>,
}

/// When a plugin runs; the earlier the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Before tokens are looked at.
    Authn,
    /// Before policies decide who may call.
    Authz,
    /// Once the request is let in.
    Stats,
    /// Last.
    Unspecified,
}

/// Traffic of some side at some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Whether it is for what the callee gets.
    pub server: bool,
    /// Whether it is for what the caller sends.
    pub client: bool,
    /// Service ports; empty for all.
    pub ports: Vec<u16>,
}

/// What a plugin works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PluginType {
    /// Requests and responses.
    Http,
    /// Connections that are not HTTP.
    Network,
}

/// What one instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of linear memory: 1 MiB to 1 GiB.
    pub memory_bytes: u64,
    /// For one callback: 1 ms to 1 s.
    pub deadline: Duration,
    /// For one callback of the start: 1 ms to 30 s.
    pub start_deadline: Duration,
}

/// What becomes of a request when the plugin cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailurePolicy {
    /// It is answered with 500.
    Closed,
    /// It goes on without the plugin.
    Open,
}

/// How a new version proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Exchanges it sees: 1 to 99.
    pub percent: u8,
    /// Failures above which it is taken back: 0 to 100.
    pub max_failure_percent: u8,
    /// Exchanges below which nothing is decided; at least 1.
    pub minimum_requests: u32,
    /// How long it is watched: 1 s to 24 h.
    pub window: Duration,
}

impl WasmPlugin {
    /// Whether it sees what `workload` gets, reached under a service and the name and number of a port of it. `app_port` is
    /// the application's own.
    pub fn covers_server(
        &self,
        workload: &Workload,
        (service, port_name, number): (&ObjectName, &str, u16),
        app_port: u16,
        subsets: &impl Subsets,
    ) -> bool {
        self.takes(number, |side| side.server)
            && self.applies.covers_port(
                &self.name.namespace,
                workload,
                Some((service, port_name)),
                app_port,
                subsets,
            )
    }

    /// Whether it sees calls to a service's port, sent from `namespace`, there by `workload` where that is known. For
    /// services it sees whoever calls them; otherwise whatever its workloads call.
    pub fn covers_client(
        &self,
        namespace: &str,
        workload: Option<&Workload>,
        (service, port_name, number): (&ObjectName, &str, u16),
        subsets: &impl Subsets,
    ) -> bool {
        if !self.takes(number, |side| side.client) {
            return false;
        }
        match &self.applies {
            Applies::Services(targets) => targets.iter().any(|target| {
                target.service == *service
                    && target.section.as_deref().is_none_or(|section| section == port_name)
            }),
            Applies::Labels(_) => workload.is_some_and(|workload| {
                self.applies.covers(&self.name.namespace, workload, None, subsets)
            }),
            Applies::Namespace => {
                let own = &*self.name.namespace;
                own == namespace || own == crate::SYSTEM_NAMESPACE
            }
        }
    }

    /// Whether it sees what callees get, whatever the port.
    pub fn is_server(&self) -> bool {
        self.matches.iter().any(|side| side.server)
    }

    /// Whether it sees what callers send, whatever the port.
    pub fn is_client(&self) -> bool {
        self.matches.iter().any(|side| side.client)
    }

    /// Lower goes first: by phase, by priority, old before new, by name.
    pub fn precedence(&self) -> impl Ord + '_ {
        let priority = std::cmp::Reverse(self.priority);
        (self.phase, priority, self.created.is_empty(), &*self.created, &self.name)
    }

    fn takes(&self, number: u16, side: impl Fn(&Match) -> bool) -> bool {
        let at = |taken: &Match| taken.ports.is_empty() || taken.ports.contains(&number);
        self.matches.iter().any(|taken| side(taken) && at(taken))
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::WasmPluginSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let applies = parse_applies(&at, raw.selector, raw.target_refs, &name, problems);
    let source = problems.take(&at.field("url"), source::parse(&raw.url));
    let sha256 = parse_sha256(&at.field("sha256"), raw.sha256.as_deref(), problems);
    if raw.sha256.is_none() && matches!(source, Some(Source::Http(_))) {
        let needed = "is needed for an http or https url: without it whoever is on the way decides what runs";
        problems.add(at.field("sha256"), needed);
    }
    let matches = parse_matches(&at.field("match"), raw.matches, problems);
    let plugin_name = parse_plugin_name(&at.field("pluginName"), raw.plugin_name, problems);
    let (environment, vm_id) = parse_surroundings(&at.field("vmConfig"), raw.vm_config, problems);
    let limits = parse_limits(&at.field("limits"), raw.limits.unwrap_or_default(), problems);
    let capabilities = parse_capabilities(&at.field("capabilities"), raw.capabilities, problems);
    let canary = raw.canary.map(|canary| parse_canary(&at.field("canary"), &canary, problems));
    let mut fields = Fields::new(at, problems);
    let priority = fields.number("priority", raw.priority, i32::MIN..=i32::MAX, 0);
    Some(Model::WasmPlugin(Arc::new(WasmPlugin {
        name,
        created: metadata.creation_timestamp.clone().unwrap_or_default(),
        applies,
        source: source?,
        sha256,
        phase: raw.phase.into(),
        priority,
        matches,
        kind: raw.kind.into(),
        plugin_name,
        configuration: configuration(raw.plugin_config),
        environment,
        vm_id,
        limits,
        failure: raw.failure_policy.into(),
        capabilities,
        canary,
    })))
}

fn parse_sha256(at: &Path<'_>, raw: Option<&str>, problems: &mut Problems) -> Option<[u8; 32]> {
    let digest = source::parse_digest(raw?);
    problems.take(at, digest.ok_or("must be 64 hexadecimal digits"))
}

fn parse_matches(
    at: &Path<'_>,
    raw: Option<Vec<raw::TrafficMatch>>,
    problems: &mut Problems,
) -> Vec<Match> {
    let Some(raw) = raw else {
        return vec![Match { server: true, client: false, ports: Vec::new() }];
    };
    check_list(at, raw.len(), problems);
    let mut matches = Vec::new();
    for (i, raw) in raw.into_iter().enumerate().take(MAX_ENTRIES) {
        let here = at.index(i);
        let ports = parse_ports(&here.field("ports"), raw.ports, problems);
        matches.push(Match {
            server: raw.mode != raw::WorkloadMode::Client,
            client: raw.mode != raw::WorkloadMode::Server,
            ports,
        });
    }
    matches
}

fn parse_ports(
    at: &Path<'_>,
    raw: Option<Vec<raw::PortMatch>>,
    problems: &mut Problems,
) -> Vec<u16> {
    let Some(raw) = raw else { return Vec::new() };
    check_list(at, raw.len(), problems);
    let mut ports = Vec::new();
    for (i, port) in raw.iter().enumerate().take(MAX_ENTRIES) {
        let here = at.index(i);
        ports.extend(port_number(&here.field("number"), port.number, problems));
    }
    ports
}

fn parse_plugin_name(at: &Path<'_>, raw: Option<String>, problems: &mut Problems) -> String {
    let name = raw.unwrap_or_default();
    if name.len() > MAX_PLUGIN_NAME {
        problems
            .add(at, format!("has {} bytes; at most {MAX_PLUGIN_NAME} are allowed", name.len()));
    }
    name
}

/// The environment, and the name of the space.
fn parse_surroundings(
    at: &Path<'_>,
    raw: Option<raw::VmConfig>,
    problems: &mut Problems,
) -> (Vec<(String, String)>, String) {
    let Some(raw) = raw else { return Default::default() };
    if raw.vm_id.len() > MAX_VM_ID {
        let message = format!("has {} bytes; at most {MAX_VM_ID} are allowed", raw.vm_id.len());
        problems.add(at.field("vmId"), message);
    }
    (parse_environment(&at.field("env"), raw.env, problems), raw.vm_id)
}

fn parse_environment(
    at: &Path<'_>,
    raw: Vec<raw::EnvVar>,
    problems: &mut Problems,
) -> Vec<(String, String)> {
    check_count(at, raw.len(), 0, MAX_ENTRIES, problems);
    let mut environment: Vec<(String, String)> = Vec::new();
    for (i, raw) in raw.into_iter().enumerate().take(MAX_ENTRIES) {
        let here = at.index(i);
        problems.take(&here.field("name"), check_variable(&raw.name));
        if raw.value.len() > MAX_ENV_VALUE || raw.value.contains('\0') {
            let message = format!("must have at most {MAX_ENV_VALUE} bytes, none of them zero");
            problems.add(here.field("value"), message);
        }
        if environment.iter().any(|(name, _)| *name == raw.name) {
            problems.add(here.field("name"), format!("`{}` is there already", raw.name));
        }
        environment.push((raw.name, raw.value));
    }
    environment
}

fn check_variable(name: &str) -> Result<(), String> {
    let good = !name.is_empty() && name.len() <= MAX_ENV_NAME && !name.contains(['=', '\0']);
    good.then_some(())
        .ok_or_else(|| format!("must have 1 to {MAX_ENV_NAME} bytes without `=` and zero"))
}

fn parse_limits(at: &Path<'_>, raw: raw::Limits, problems: &mut Problems) -> Limits {
    let memory_at = at.field("memory");
    let memory = raw.memory.as_deref().and_then(|text| {
        let bytes = quantity::parse(text).and_then(|bytes| {
            let allowed = (MIN_MEMORY..=MAX_MEMORY).contains(&bytes);
            allowed.then_some(bytes).ok_or_else(|| "must be 1Mi to 1Gi".to_owned())
        });
        problems.take(&memory_at, bytes)
    });
    let mut fields = Fields::new(*at, problems);
    let deadline = raw.deadline.as_deref();
    let start_deadline = raw.start_deadline.as_deref();
    Limits {
        memory_bytes: memory.unwrap_or(DEFAULT_MEMORY),
        deadline: fields.duration(
            "deadline",
            deadline,
            MIN_DEADLINE..=MAX_DEADLINE,
            DEFAULT_DEADLINE,
        ),
        start_deadline: fields.duration(
            "startDeadline",
            start_deadline,
            MIN_DEADLINE..=MAX_START_DEADLINE,
            DEFAULT_START_DEADLINE,
        ),
    }
}

fn parse_capabilities(
    at: &Path<'_>,
    raw: Option<BTreeSet<String>>,
    problems: &mut Problems,
) -> Option<BTreeSet<String>> {
    let raw = raw?;
    check_count(at, raw.len(), 0, MAX_CAPABILITIES, problems);
    for name in raw.iter().take(MAX_CAPABILITIES) {
        problems.take(at, capability::check(name));
    }
    Some(raw)
}

fn parse_canary(at: &Path<'_>, raw: &raw::Canary, problems: &mut Problems) -> Canary {
    let mut fields = Fields::new(*at, problems);
    let window = Duration::from_secs(1)..=MAX_WINDOW;
    Canary {
        percent: fields.number("percent", raw.percent, 1..=99, 10),
        max_failure_percent: fields.number(
            "maxFailurePercent",
            raw.max_failure_percent,
            0..=100,
            1,
        ),
        minimum_requests: fields.number(
            "minimumRequests",
            raw.minimum_requests,
            1..=1_000_000,
            100,
        ),
        window: fields.duration("window", raw.window.as_deref(), window, DEFAULT_WINDOW),
    }
}

/// What the plugin gets: nothing for nothing, a string's bare text, anything else as JSON.
fn configuration(raw: Option<Value>) -> Arc<[u8]> {
    match raw {
        None | Some(Value::Null) => Arc::default(),
        Some(Value::String(text)) => text.into_bytes().into(),
        Some(value) => value.to_string().into_bytes().into(),
    }
}

impl From<raw::Phase> for Phase {
    fn from(raw: raw::Phase) -> Self {
        match raw {
            raw::Phase::Authn => Self::Authn,
            raw::Phase::Authz => Self::Authz,
            raw::Phase::Stats => Self::Stats,
            raw::Phase::UnspecifiedPhase => Self::Unspecified,
        }
    }
}

impl Phase {
    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authn => "AUTHN",
            Self::Authz => "AUTHZ",
            Self::Stats => "STATS",
            Self::Unspecified => "UNSPECIFIED_PHASE",
        }
    }
}

impl From<raw::PluginType> for PluginType {
    fn from(raw: raw::PluginType) -> Self {
        match raw {
            raw::PluginType::Http => Self::Http,
            raw::PluginType::Network => Self::Network,
        }
    }
}

impl From<raw::FailurePolicy> for FailurePolicy {
    fn from(raw: raw::FailurePolicy) -> Self {
        match raw {
            raw::FailurePolicy::Closed => Self::Closed,
            raw::FailurePolicy::Open => Self::Open,
        }
    }
}

#[cfg(test)]
mod tests;
