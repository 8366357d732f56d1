//! Who this proxy is, and where its configuration comes from.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use leno_api::{Key, model::ObjectName};
use tokio::sync::{mpsc, watch};

use super::Error;
use crate::{
    bootstrap::{Options, Unreachable},
    config::{
        apply::Applier,
        compile::{Own, Proof},
        last_good,
        source::{
            self, Change, Item, Update, Wishes,
            control_plane::{self, Access, ControlPlaneSource, purge, quota},
            file,
        },
    },
    filter::jwt::{KeyCache, Timing},
    forward::worker::Shared,
    identity::{Identity, control_plane::Connector},
    telemetry::scope::Party,
};

/// Where the configuration comes from.
pub(super) enum Source {
    File(file::FileSource, Change),
    ControlPlane(String),
}

impl Source {
    pub(super) fn open(options: &Options) -> Result<Self, Error> {
        match (&options.config, &options.control_plane) {
            (Some(path), _) => {
                let (source, change) = file::FileSource::open(path.clone())?;
                Ok(Self::File(source, change))
            }
            (None, Some(address)) => Ok(Self::ControlPlane(address.clone())),
            (None, None) => Err(Error::NoSource),
        }
    }

    /// Puts in force what is known already and starts following. The sender returned tells the source that the proxy
    /// is about to end.
    pub(super) fn start(
        self,
        options: &Options,
        workload: Option<serde_json::Value>,
        identity: &Arc<Identity>,
        applier: &mut Applier,
        Channels { updates, wishes }: Channels,
    ) -> watch::Sender<bool> {
        let (stopping, stopped) = watch::channel(false);
        match self {
            Self::File(source, change) => {
                applier.take(Update::Changed(change));
                let mut stopped = stopped;
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        followed = source.follow(updates) => if let Err(error) = followed {
                            tracing::error!("{error}; changes of the file will not be noticed");
                        },
                        // Nobody can tell us to stop any more: the drain is over. The configuration task ends with its
                        // source, and the process waits for it.
                        () = async { while stopped.changed().await.is_ok() {} } => {}
                    }
                });
            }
            Self::ControlPlane(address) => {
                let held = match last_good_path(options) {
                    Some(path) => restore(&path, applier),
                    None => Vec::new(),
                };
                let (source, link) = ControlPlaneSource::new(control_plane::Options {
                    address,
                    access: access(options, identity),
                    id: proxy_name(options),
                    namespace: options.namespace.clone(),
                    workload,
                    lease: Duration::from_secs(options.lease.into()),
                    services: own_services(options),
                    held,
                    hosts: applier.hosts(),
                });
                tokio::task::spawn_local(source.run());
                tokio::task::spawn_local(source::follow(link, updates, wishes, stopped));
            }
        }
        stopping
    }
}

/// Starts to ask for shares of global rate limits, where there is somebody to ask.
pub(super) fn share_limits(options: &Options, identity: &Arc<Identity>, shared: &Shared) {
    let Some(address) = options.control_plane.clone().filter(|_| options.config.is_none()) else {
        return;
    };
    let asking = quota::Options {
        address,
        access: access(options, identity),
        proxy: proxy_name(options),
        started: shared.started,
    };
    let (published, families) = (shared.published.clone(), shared.families.clone());
    tokio::task::spawn_local(quota::run(asking, published, families));
}

/// Starts to listen for what our caches are to forget, where there is somebody who may say so.
pub(super) fn hear_of_purges(options: &Options, identity: &Arc<Identity>, shared: &Shared) {
    let Some(address) = options.control_plane.clone().filter(|_| options.config.is_none()) else {
        return;
    };
    let access = access(options, identity);
    let listening = purge::Options { address, access, proxy: proxy_name(options) };
    tokio::task::spawn_local(purge::run(listening, shared.published.clone()));
}

/// How a source and the configuration task hear of each other.
pub(super) struct Channels {
    pub(super) updates: mpsc::Sender<Update>,
    /// What is asked of the control plane.
    pub(super) wishes: Wishes,
}

/// How the control plane is spoken to.
fn access(options: &Options, identity: &Arc<Identity>) -> Access {
    match &options.ca_file {
        Some(_) => Access::Secured {
            identity: identity.clone(),
            connector: Connector::new(identity.clone(), options.ca_file.clone()),
        },
        None => Access::Plain { token_file: options.token_file.clone() },
    }
}

/// What was in force when the proxy last ran is put in force again. Returns what is held in which version.
fn restore(path: &Path, applier: &mut Applier) -> Vec<(Key, String)> {
    match last_good::load(path) {
        Ok(None) => Vec::new(),
        Ok(Some(state)) => {
            tracing::info!("starting with {} resources known from before", state.items.len());
            let version = |item: &Item| (item.resource.key(), item.version.clone());
            let held = state.items.iter().map(version).collect();
            let hosts = state.hosts.into_iter().map(|host| (host, Some(true))).collect();
            let change = Change { upserts: state.items, hosts, ..Change::default() };
            applier.take(Update::Changed(change));
            held
        }
        Err(error) => {
            tracing::error!("{error}");
            Vec::new()
        }
    }
}

/// Our own `Workload`, to be registered; `None` when no service was named.
///
/// # Errors
/// Where others could not reach it.
pub(super) fn own_workload(
    options: &Options,
    inbound: Option<SocketAddr>,
    identity: &Identity,
) -> Result<Option<serde_json::Value>, Unreachable> {
    let (Some(name), Some(inbound)) = (options.name.as_deref(), inbound) else { return Ok(None) };
    if options.services.is_empty() {
        return Ok(None);
    }
    let address = options.advertised(inbound)?;
    let labels: BTreeMap<&str, &str> =
        options.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    let ports: BTreeMap<&str, u16> =
        options.ports.iter().map(|(name, port)| (&**name, *port)).collect();
    let mut spec = serde_json::json!({
        "services": options.services, "address": address, "ports": ports,
        "sidecar": {"port": inbound.port()},
    });
    if identity.is_expected() {
        spec["sidecar"]["mutualTls"] = true.into();
    }
    // A certificate from files is here already, and callers expect what the workload says.
    let certificate = identity.current();
    let certified = certificate.as_ref().map(|certificate| &*certificate.id().service_account);
    if let Some(account) = options.service_account.as_deref().or(certified) {
        spec["serviceAccount"] = account.into();
    }
    if let Some(zone) = &options.zone {
        spec["zone"] = zone.as_str().into();
    }
    Ok(Some(serde_json::json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": name, "namespace": options.namespace, "labels": labels}, "spec": spec,
    })))
}

/// What our own workload serves.
fn own_services(options: &Options) -> Vec<ObjectName> {
    options.services.iter().map(|name| ObjectName::new(&options.namespace, name)).collect()
}

/// Services as one of whose workloads we are registered with the control plane.
pub(super) fn registered(options: &Options) -> Vec<ObjectName> {
    match (&options.config, &options.name) {
        (None, Some(_)) => own_services(options),
        _ => Vec::new(),
    }
}

/// What the configuration is compiled for.
pub(super) fn own(options: &Options) -> Own {
    let version =
        options.labels.iter().find(|(key, _)| key == "version").map(|(_, value)| value.clone());
    Own {
        namespace: options.namespace.clone(),
        party: Party {
            workload: options.name.as_deref().unwrap_or_default().into(),
            namespace: options.namespace.as_str().into(),
            version: version.unwrap_or_default().into(),
        },
        workload: None,
        zone: options.zone.as_deref().map(Arc::from),
        application: options.application(),
        proof: Proof::default(),
        issuer_keys: KeyCache::new(Timing::default()),
    }
}

/// What people know the proxy by.
pub(super) fn proxy_name(options: &Options) -> String {
    own_name(options).map_or_else(|| options.namespace.clone(), |name| name.to_string())
}

pub(super) fn own_name(options: &Options) -> Option<ObjectName> {
    options.name.as_deref().map(|name| ObjectName::new(&options.namespace, name))
}

/// Where modules of plugins are kept.
pub(super) fn module_folder(options: &Options) -> Option<PathBuf> {
    let beside = || options.state_dir.as_ref().map(|dir| dir.join("modules"));
    options.module_cache.clone().or_else(beside)
}

pub(super) fn last_good_path(options: &Options) -> Option<PathBuf> {
    options
        .state_dir
        .as_ref()
        .filter(|_| options.control_plane.is_some())
        .map(|dir| dir.join("last-good"))
}
