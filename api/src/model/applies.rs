//! Which workloads a policy is for.

use std::collections::BTreeMap;

use crate::{
    Path, SYSTEM_NAMESPACE,
    invalid::Problems,
    model::{
        ObjectName,
        name::check_label_pair,
        pattern::check_list,
        service::Subsets,
        traffic_policy::{Target, parse_targets},
        workload::Workload,
    },
    spec::{reference::TargetRef, scope::WorkloadSelector},
};

/// Which workloads a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applies {
    /// All of the policy's namespace; in [`SYSTEM_NAMESPACE`] all of the mesh.
    Namespace,
    /// Those of the policy's namespace that have all these labels (at least one); in [`SYSTEM_NAMESPACE`] those of
    /// the mesh.
    Labels(BTreeMap<String, String>),
    /// Those that serve these services, and as far as they are reached as such. At least one. Of a subset those of
    /// the whole service that are in it, as far as they are reached as that: they do not know themselves as the subset.
    Services(Vec<Target>),
}

impl Applies {
    /// Whether a policy of the namespace `policy_namespace` is for `workload`.
    ///
    /// `port` is the service and the name of the port of it under which the workload is reached. `None` asks whether
    /// the policy is for it under any. `subsets` says which services are parts of others.
    pub fn covers(
        &self,
        policy_namespace: &str,
        workload: &Workload,
        port: Option<(&ObjectName, &str)>,
        subsets: &impl Subsets,
    ) -> bool {
        self.covers_where(policy_namespace, workload, subsets, |served, section| match port {
            None => true,
            Some((service, name)) => {
                served == service && section.is_none_or(|section| section == name)
            }
        })
    }

    /// The same for traffic that reaches the application's port `app_port`, whether or not under a known service:
    /// without one a policy for a named port covers what that name stands for at the workload.
    pub fn covers_port(
        &self,
        policy_namespace: &str,
        workload: &Workload,
        port: Option<(&ObjectName, &str)>,
        app_port: u16,
        subsets: &impl Subsets,
    ) -> bool {
        if port.is_some() {
            return self.covers(policy_namespace, workload, port, subsets);
        }
        self.covers_where(policy_namespace, workload, subsets, |served, section| {
            section.is_none_or(|section| workload.app_port(&served.name, section) == Some(app_port))
        })
    }

    /// How specific a policy of that namespace is: 0 for chosen workloads or services, 1 for a namespace, 2 for the
    /// mesh.
    pub fn rank(&self, policy_namespace: &str) -> u8 {
        match self {
            Self::Labels(_) | Self::Services(_) => 0,
            Self::Namespace if policy_namespace == SYSTEM_NAMESPACE => 2,
            Self::Namespace => 1,
        }
    }

    /// The services it names.
    pub fn targets(&self) -> &[Target] {
        match self {
            Self::Services(targets) => targets,
            Self::Namespace | Self::Labels(_) => &[],
        }
    }

    fn covers_where(
        &self,
        policy_namespace: &str,
        workload: &Workload,
        subsets: &impl Subsets,
        reached: impl Fn(&ObjectName, Option<&str>) -> bool,
    ) -> bool {
        let in_reach =
            policy_namespace == SYSTEM_NAMESPACE || policy_namespace == &*workload.name.namespace;
        match self {
            Self::Namespace => in_reach,
            Self::Labels(labels) => {
                let has = |(key, value)| workload.labels.get(key) == Some(value);
                in_reach && labels.iter().all(has)
            }
            Self::Services(targets) => targets.iter().any(|target| {
                let serves = |service: &ObjectName| {
                    workload.services.contains(service)
                        && reached(service, target.section.as_deref())
                };
                let subset = subsets.subset(&target.service);
                serves(&target.service)
                    || subset.is_some_and(|subset| subset.has(workload) && serves(&subset.of))
            }),
        }
    }
}

/// Reads `selector` and `targetRefs`, which exclude each other.
pub(crate) fn parse_applies(
    at: &Path<'_>,
    selector: Option<WorkloadSelector>,
    target_refs: Option<Vec<TargetRef>>,
    policy: &ObjectName,
    problems: &mut Problems,
) -> Applies {
    let targets_at = at.field("targetRefs");
    match (selector, target_refs) {
        (Some(_), Some(_)) => {
            problems.add(targets_at, "and selector exclude each other; keep the one you mean");
            Applies::Namespace
        }
        (None, Some(raw)) => Applies::Services(parse_targets(&targets_at, raw, policy, problems)),
        (selector, None) => {
            parse_selector(&at.field("selector"), selector.unwrap_or_default(), problems)
        }
    }
}

fn parse_selector(at: &Path<'_>, raw: WorkloadSelector, problems: &mut Problems) -> Applies {
    let here = at.field("matchLabels");
    if raw.match_labels.is_empty() {
        return Applies::Namespace;
    }
    check_list(&here, raw.match_labels.len(), problems);
    for (key, value) in &raw.match_labels {
        problems.take(&here.field(key), check_label_pair(key, value));
    }
    Applies::Labels(raw.match_labels)
}

#[cfg(test)]
mod tests;
