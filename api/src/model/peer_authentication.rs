//! `PeerAuthentication`.

use std::{cmp::Reverse, collections::BTreeMap};

use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        applies::{Applies, parse_applies},
        pattern::check_list,
        service::Subsets,
        workload::Workload,
    },
    resource::read,
    spec::peer_authentication as raw,
};

/// What a workload takes at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Mutual TLS and plain text.
    Permissive,
    /// Plain text only.
    Disable,
}

/// Whether some workloads take mutual TLS.
#[derive(Clone, Debug)]
pub struct PeerAuthentication {
    /// Which one.
    pub name: ObjectName,
    /// RFC 3339; empty where unknown. The older of two equally specific policies wins.
    pub created: String,
    /// For which workloads.
    pub applies: Applies,
    /// For every port that `ports` does not have; `None` leaves it to less specific policies.
    pub mode: Option<TlsMode>,
    /// By the application's port.
    pub ports: BTreeMap<u16, TlsMode>,
}

impl PeerAuthentication {
    /// What it says about an application's port.
    pub fn says(&self, app_port: u16) -> Option<TlsMode> {
        self.ports.get(&app_port).copied().or(self.mode)
    }

    /// Lower goes first: specific before general, one port of a service before the whole, old before new.
    fn precedence(&self) -> impl Ord + '_ {
        let rank = self.applies.rank(&self.name.namespace);
        let narrow = self.applies.targets().iter().any(|target| target.section.is_some());
        (rank, Reverse(narrow), self.created.is_empty(), &*self.created, &self.name)
    }
}

/// The mode in force for one port of an application: what the most specific policy says that says something (for
/// chosen workloads, then for the namespace, then for the mesh; of several the oldest, then by name), a port's own
/// entry before the policy's; [`TlsMode::Strict`] where none does.
///
/// `service_port` is the service, and the name of its port, under which the workload is reached, where that is known.
pub fn mode_of<'a>(
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    workload: &Workload,
    service_port: Option<(&ObjectName, &str)>,
    app_port: u16,
    subsets: &impl Subsets,
) -> TlsMode {
    let applies = |policy: &&PeerAuthentication| {
        let namespace = &policy.name.namespace;
        policy.applies.covers_port(namespace, workload, service_port, app_port, subsets)
    };
    let said = policies.into_iter().filter(applies).filter_map(|policy| {
        let mode = policy.says(app_port)?;
        Some((policy.precedence(), mode))
    });
    said.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, mode)| mode).unwrap_or_default()
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::PeerAuthenticationSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let applies = parse_applies(&at, raw.selector, raw.target_refs, &name, problems);
    let mode = raw.mtls.and_then(|mtls| mode_from(mtls.mode));
    let ports = parse_ports(&at.field("portLevelMtls"), raw.port_level_mtls, problems);
    let created = metadata.creation_timestamp.clone().unwrap_or_default();
    Some(Model::PeerAuthentication(
        PeerAuthentication { name, created, applies, mode, ports }.into(),
    ))
}

fn parse_ports(
    at: &Path<'_>,
    raw: Option<BTreeMap<String, raw::MutualTls>>,
    problems: &mut Problems,
) -> BTreeMap<u16, TlsMode> {
    let Some(raw) = raw else { return BTreeMap::new() };
    check_list(at, raw.len(), problems);
    let mut ports = BTreeMap::new();
    for (text, mtls) in raw {
        // One spelling per port, so that no second one can contradict it.
        let port = text.parse::<u16>().ok().filter(|port| *port > 0 && port.to_string() == text);
        match port {
            Some(port) => ports.extend(mode_from(mtls.mode).map(|mode| (port, mode))),
            None => problems.add(at.field(&text), "is not a port; must be 1 to 65535"),
        }
    }
    ports
}

fn mode_from(raw: raw::MutualTlsMode) -> Option<TlsMode> {
    match raw {
        raw::MutualTlsMode::Unset => None,
        raw::MutualTlsMode::Disable => Some(TlsMode::Disable),
        raw::MutualTlsMode::Permissive => Some(TlsMode::Permissive),
        raw::MutualTlsMode::Strict => Some(TlsMode::Strict),
    }
}

#[cfg(test)]
mod tests;
