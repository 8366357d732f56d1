//! The composition root: binds, starts the workers and the side thread's tasks, and ends them in order.

mod listeners;
mod memory;
mod source;

use std::{
    cell::Cell,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use leno_daemon::{exposition, files, logs, shutdown};
use prometheus::Registry;
use tokio::{
    runtime,
    sync::{mpsc, watch},
};

use self::listeners::{Bound, bind_all};
use self::source::{
    Channels, Source, hear_of_purges, last_good_path, module_folder, own, own_name, own_workload,
    proxy_name, registered, share_limits,
};
use crate::{
    admin::{
        caches,
        probes::{self, Probes},
        server::Admin,
    },
    bootstrap::{self, AccessLog, Options, UnknownDestinations},
    cluster::connect::application_source,
    config::{
        apply::Applier,
        prepare::Roster,
        source::{MAX_WAITING, Wishes, file},
    },
    forward::{
        callouts::Caller,
        capture::Capture,
        limits,
        observed::Mailbox,
        sampler,
        worker::{Shared, Unrouted, Worker},
    },
    http::{fetch::Fetcher, server::Limits, unread},
    identity::{self, Identity},
    listen::{accept, bind},
    snapshot::Published,
    telemetry::{
        access_log,
        metrics::{FLUSH_AFTER, Families},
        record::Direction,
        scope::{Party, Scope, ScopeLabels},
    },
};

/// A call waits this long for a host that nobody has asked for before.
const ON_DEMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Downstream connections where nothing else is said.
const MAX_CONNECTIONS: usize = 20_000;
/// Plugins that became something else than was said, and of which the control plane does not know it yet.
const MAX_AGAIN: usize = 1024;
/// Files that are not connections of callers or to endpoints.
const OWN_FILES: usize = 256;
/// The access log may take this long to write what is queued when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Idle upstream connections are looked at this often; another worker may wait for one, for as long as connecting may
/// take (1 s unless a policy says otherwise).
const SWEEP: Duration = Duration::from_millis(250);
/// Memory that was freed goes back to the system after so many of them: a second.
const SWEEPS_PER_RETURN: u64 = 4;
/// After so long without work a thread that reads files ends.
const IDLE_THREAD: Duration = Duration::from_secs(1);

/// Why the proxy cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be bound.
    #[error(transparent)]
    Bind(#[from] bind::Error),
    /// The configuration file cannot be used.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The control plane could be anybody.
    #[error(transparent)]
    Unproven(#[from] bootstrap::Unproven),
    /// Nobody would reach us.
    #[error(transparent)]
    Unreachable(#[from] bootstrap::Unreachable),
    /// The files of our certificate cannot be used.
    #[error(transparent)]
    Identity(Box<identity::Error>),
    /// Neither a file nor a control plane.
    #[error("say where the configuration comes from: --config FILE or --control-plane ADDRESS")]
    NoSource,
    /// What was said about our own workload is not valid.
    #[error("the workload of --name, --service, --app and --label is not valid: {0}")]
    Workload(leno_api::Invalid),
    /// What was declared to be probed.
    #[error("the probes of --probes cannot be used: {0}")]
    Probes(#[from] probes::Error),
    /// Logging.
    #[error(transparent)]
    Logs(#[from] logs::Error),
    /// Metrics; only when a name is registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The access log's file.
    #[error("access log {path}: {source}")]
    AccessLog {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refuses threads, signals or the like.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs the proxy until it is asked to stop.
///
/// # Errors
/// When it cannot start; the message says what to do.
pub fn run(options: Options) -> Result<(), Error> {
    let small_pages = memory::refuse_huge_pages();
    let format = if options.log_json { logs::Format::Json } else { logs::Format::Text };
    let logs = match logs::init(&options.log, format) {
        Ok(logs) => Some(logs),
        // Inside another program (`leno`, tests) logging may belong to somebody else.
        Err(logs::Error::Twice) => None,
        Err(error) => return Err(error.into()),
    };
    // Threads that read files are many at the start and seldom needed afterwards; each keeps memory.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .build_local(Default::default());
    let runtime = runtime.map_err(system("starting the side thread's runtime"))?;
    if let Err(error) = small_pages {
        tracing::debug!("huge pages cannot be switched off ({error}): more memory is used");
    }
    runtime.block_on(side(options, logs))
}

/// Puts into the metrics what is looked up when somebody asks for them.
fn show(shared: &Shared, plugins: Arc<Roster>) {
    shared.families.plugins.show(move || plugins.shown());
    caches::show(shared);
}

async fn side(options: Options, logs: Option<logs::Logs>) -> Result<(), Error> {
    let registry = Registry::new();
    let process = exposition::Process::register(&registry)?;
    let families = Arc::new(Families::register(registry)?);
    count_panics(families.panics.clone());
    let mut requests = shutdown::Requests::listen().map_err(system("signal handlers"))?;
    // What can be wrong with the configuration is found before anything is bound.
    let source = Source::open(&options)?;
    let identity = open_identity(&options, &families)?;
    let probes = read_probes(&options)?;
    let bound = bind_all(&options)?;
    let workload = own_workload(&options, bound.inbound_address(), &identity)?;
    if let Some(workload) = &workload {
        leno_api::Resource::from_json(workload.clone()).map_err(Error::Workload)?;
    }
    let (drain, draining) = watch::channel(false);
    let (published, wanted) = Published::new(options.control_plane.is_some());
    let access_log = open_access_log(&options, &families)?;
    let shared = Arc::new(Shared {
        published: published.clone(),
        identity: identity.clone(),
        families: families.clone(),
        unrouted: unrouted(&options),
        access_log,
        limits: limits_of(&options),
        connections: AtomicUsize::new(0),
        listening: AtomicUsize::new(0),
        max_connections: connection_limit(&options),
        drain: draining,
        on_demand_timeout: ON_DEMAND_TIMEOUT,
        workers: u32::try_from(options.worker_count()).unwrap_or(u32::MAX),
        mailbox: Mailbox::default(),
        delayed: Arc::default(),
        started: Instant::now(),
        capture: capture(&options, &bound),
    });
    let (updates, incoming) = mpsc::channel(MAX_WAITING);
    let (questions, asked) = mpsc::channel(16);
    let on_demand = options.control_plane.is_some();
    let last_good = last_good_path(&options);
    let (own, own_name) = (own(&options), own_name(&options));
    let issuer_keys = own.issuer_keys.clone();
    tokio::task::spawn_local(issuer_keys.clone().run(Fetcher::default()));
    let known = identity.clone();
    let applier = Applier::new(published, families, known, own, own_name, on_demand, last_good);
    let mut applier = applier.keep_modules(module_folder(&options));
    let (again, asked_again) = mpsc::channel(MAX_AGAIN);
    if on_demand {
        applier.tell_again(again);
    }
    let plugins = applier.roster().clone();
    show(&shared, plugins.clone());
    let wishes = Wishes { hosts: wanted, again: asked_again, plugins: plugins.clone() };
    let channels = Channels { updates, wishes };
    let stopping = source.start(&options, workload, &identity, &mut applier, channels);
    let applying = tokio::task::spawn_local(applier.run(incoming, asked));
    for (at, listeners) in bound.workers.into_iter().enumerate() {
        start_worker(at, shared.clone(), listeners)?;
    }
    tokio::task::spawn_local(sampler::run(shared.clone()));
    tokio::task::spawn_local(limits::show(shared.clone()));
    share_limits(&options, &identity, &shared);
    hear_of_purges(&options, &identity, &shared);
    announce(&bound.addresses);
    tokio::task::spawn_local(memory::give_back_always());
    let (stop, mut stops) = mpsc::channel(4);
    let admin = Rc::new(Admin {
        shared: shared.clone(),
        issuer_keys,
        plugins,
        addresses: bound.addresses,
        questions,
        logs,
        process,
        stop,
        started: Instant::now(),
        failing: Cell::new(false),
        probes,
        registered: registered(&options),
    });
    let mut serving = serve_operators(admin, bound.admin)?;
    let now = tokio::select! {
        signal = requests.next() => { tracing::info!("{signal}: draining"); false }
        now = stops.recv() => now.unwrap_or(true),
    };
    if now {
        drop(stopping);
    } else {
        drain_all(&options, &shared, &drain, stopping, &mut requests, &mut stops).await;
    }
    serving.shutdown().await;
    // The configuration task saves what is unsaved and ends with its source.
    let _ = tokio::time::timeout(Duration::from_secs(2), applying).await;
    if shared.access_log.as_ref().is_some_and(|log| !log.flush(LAST_LINES)) {
        tracing::warn!("the last lines of the access log could not be written in {LAST_LINES:?}");
    }
    tracing::info!("ended");
    Ok(())
}

/// What callers may send.
fn limits_of(options: &Options) -> Limits {
    Limits {
        head_bytes: usize::from(options.max_head_kib) * 1024,
        head_fields: usize::from(options.max_headers),
        head_timeout: Duration::from_secs(options.head_timeout.into()),
        send_timeout: Duration::from_secs(options.send_timeout.into()),
        ..Limits::default()
    }
}

/// Serves what operators look at, on each of its ports.
fn serve_operators(
    admin: Rc<Admin>,
    listeners: impl IntoIterator<Item = (crate::admin::server::Surface, std::net::TcpListener)>,
) -> Result<tokio::task::JoinSet<()>, Error> {
    let mut serving = tokio::task::JoinSet::new();
    for (surface, listener) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener);
        let listener = listener.map_err(system("the admin listener"))?;
        serving.spawn_local(crate::admin::server::run(admin.clone(), listener, surface));
    }
    Ok(serving)
}

/// Who we can prove to be, and the task that keeps it so. Nobody waits for the first certificate here: the proxy is not
/// ready before, but can be looked at.
fn open_identity(options: &Options, families: &Families) -> Result<Arc<Identity>, Error> {
    let Some(source) = options.identity_source(&proxy_name(options))? else {
        return Ok(Identity::none());
    };
    let (identity, keeping) =
        identity::start(source, families).map_err(|error| Error::Identity(error.into()))?;
    tokio::task::spawn_local(keeping);
    Ok(identity)
}

/// Downstream connections at once: as told, else as many as open files allow (each may need one more upstream, and the
/// proxy has some of its own), but no more than [`MAX_CONNECTIONS`].
fn connection_limit(options: &Options) -> usize {
    let files = files::raise_limit()
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let carried = files.saturating_sub(OWN_FILES) / 2;
    match options.max_connections {
        None => carried.min(MAX_CONNECTIONS),
        Some(asked) => {
            if asked > carried {
                tracing::warn!(
                    "--max-connections {asked} may need {} open files, {files} are allowed: raise `ulimit -n`",
                    2 * asked + OWN_FILES
                );
            }
            asked
        }
    }
}

/// Probes of the application that are declared, asked for in a way that the rules let pass.
fn read_probes(options: &Options) -> Result<Option<Probes>, Error> {
    let application = options.application();
    let source = options.capture.then(|| application_source(application));
    let read = |text: &String| Probes::read(text, application, source);
    Ok(options.probes.as_ref().map(read).transpose()?)
}

/// What is known of connections that the kernel leads here, where it does.
fn capture(options: &Options, bound: &Bound) -> Option<Capture> {
    let refuse_unknown = options.unknown_destinations == UnknownDestinations::Refuse;
    let listeners = bound.addresses.iter().map(|(_, address)| address.port()).collect();
    let new = || Capture::new(refuse_unknown, listeners, &own(options).party, Instant::now());
    options.capture.then(new)
}

/// Lets what is under way finish, within its time; a second signal ends it at once.
async fn drain_all(
    options: &Options,
    shared: &Shared,
    drain: &watch::Sender<bool>,
    stopping: watch::Sender<bool>,
    requests: &mut shutdown::Requests,
    stops: &mut mpsc::Receiver<bool>,
) {
    // The control plane is told first, so that nobody new is sent here.
    stopping.send_replace(true);
    let finish = async {
        tokio::time::sleep(Duration::from_secs(options.drain_delay.into())).await;
        drain.send_replace(true);
        while shared.listening.load(Ordering::Acquire) > 0
            || shared.connections.load(Ordering::Relaxed) > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(u64::from(options.drain) + u64::from(options.drain_delay));
    tokio::select! {
        () = finish => tracing::info!("everything under way has finished"),
        () = tokio::time::sleep(limit) => {
            let left = shared.connections.load(Ordering::Relaxed);
            tracing::warn!("{left} connections are cut off after {limit:?}");
        }
        signal = requests.next() => tracing::warn!("{signal} again: ending at once"),
        _ = stops.recv() => tracing::warn!("asked again: ending at once"),
    }
}

fn start_worker(
    at: usize,
    shared: Arc<Shared>,
    listeners: Vec<(std::net::TcpListener, Direction)>,
) -> Result<(), Error> {
    // The runtime is bound to its thread, so it is made there; how that went is told here.
    let (made, result) = std::sync::mpsc::sync_channel(1);
    let work = move || {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        match runtime {
            Ok(runtime) => {
                let _ = made.send(Ok(()));
                runtime.block_on(work(Rc::new(Worker::new(shared)), listeners));
            }
            Err(error) => _ = made.send(Err(error)),
        }
    };
    thread::Builder::new()
        .name(format!("worker-{at}"))
        .spawn(work)
        .map_err(system("starting a worker"))?;
    let made = result.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")));
    made.map_err(system("starting a worker's runtime"))
}

async fn work(worker: Rc<Worker>, listeners: Vec<(std::net::TcpListener, Direction)>) {
    worker.plugins.call_by(Rc::new(Caller::new(&worker)));
    for (listener, direction) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                drop(tokio::task::spawn_local(accept::run(worker.clone(), listener, direction)))
            }
            Err(error) => tracing::error!("{}: {error}", direction.as_str()),
        }
    }
    let flushing = worker.clone();
    tokio::task::spawn_local(async move {
        loop {
            flushing.series.unflushed().await;
            tokio::time::sleep(FLUSH_AFTER).await;
            flushing.series.flush();
        }
    });
    let telling = worker.clone();
    tokio::task::spawn_local(async move { telling.tell_observations().await });
    let mut ticks = tokio::time::interval(SWEEP);
    for sweep in 0_u64.. {
        ticks.tick().await;
        // An idle worker would otherwise keep an old configuration, and its endpoints, for ever.
        drop(worker.snapshot());
        worker.limits.borrow_mut().sweep();
        let now = tokio::time::Instant::now();
        worker.pools.sweep(now);
        unread::sweep(now, worker.shared.limits.send_timeout);
        worker.tend_plugins();
        if sweep % SWEEPS_PER_RETURN == 0 {
            leno_daemon::memory::give_back();
        }
    }
}

/// The one JSON line on standard output that other programs read.
fn announce(addresses: &[(&'static str, SocketAddr)]) {
    let fields =
        addresses.iter().map(|(name, address)| ((*name).to_owned(), address.to_string().into()));
    let line = serde_json::Value::Object(fields.collect());
    // A closed standard output is not a reason to refuse service.
    let _ = writeln!(io::stdout(), "{line}");
}

fn open_access_log(
    options: &Options,
    families: &Families,
) -> Result<Option<access_log::AccessLog>, Error> {
    let format = match options.access_log {
        AccessLog::Off => return Ok(None),
        AccessLog::Text => access_log::Format::Text,
        AccessLog::Json => access_log::Format::Json,
    };
    let dropped = families.log_lines_dropped.clone();
    let log = match &options.access_log_file {
        None => access_log::AccessLog::start(format, io::stdout(), dropped),
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|source| Error::AccessLog { path: path.clone(), source })?;
            access_log::AccessLog::start(format, file, dropped)
        }
    };
    log.map(Some).map_err(system("starting the access log"))
}

/// Requests that found no service are counted for an unknown one.
fn unrouted(options: &Options) -> Unrouted {
    let party = own(options).party;
    let outbound =
        ScopeLabels { reporter: "source", source: party.clone(), ..ScopeLabels::default() };
    let inbound = ScopeLabels {
        reporter: "destination",
        source: Party::default(),
        destination: party,
        ..outbound.clone()
    };
    Unrouted { outbound: Scope::new(outbound), inbound: Scope::new(inbound) }
}

/// A panic ends its task only; it is counted and logged here.
fn count_panics(panics: prometheus::IntCounter) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        panics.inc();
        tracing::error!("panic: {info}");
        before(info);
    }));
}
