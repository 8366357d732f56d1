//! Endpoints by zone, for callers in one of them.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use leno_api::model::traffic_policy;

use super::Group;
use crate::cluster::{
    Endpoint,
    balance::zone::{Plan, Settings, Zone},
};

/// Two zones or more, one of them our own.
#[derive(Debug)]
pub(super) struct Zones {
    own: usize,
    /// With the places of their endpoints among all.
    groups: Box<[(Group, Box<[u32]>)]>,
    settings: Settings,
    /// Made anew when shares of endpoints change, which happens on the side thread.
    plan: ArcSwap<Plan>,
}

impl Zones {
    /// `None` where there is nothing to prefer: no endpoint is in `own`, or all are, or it is switched off. Endpoints
    /// whose zone is not known are a zone of their own.
    pub(super) fn new(
        list: &[Arc<Endpoint>],
        settings: &traffic_policy::Zones,
        own: &str,
    ) -> Option<Self> {
        let elsewhere = |endpoint: &Arc<Endpoint>| endpoint.zone() != Some(own);
        let elsewhere = list.iter().filter(|endpoint| elsewhere(endpoint)).count();
        if !settings.prefer || elsewhere == 0 || elsewhere == list.len() {
            return None;
        }
        let mut zones: BTreeMap<Option<&str>, Vec<u32>> = BTreeMap::new();
        for (place, endpoint) in (0..).zip(list) {
            zones.entry(endpoint.zone()).or_default().push(place);
        }
        let own = zones.keys().position(|zone| *zone == Some(own))?;
        let group = |places: Vec<u32>| {
            let members: Vec<_> =
                places.iter().map(|place| list[*place as usize].clone()).collect();
            (Group::from(members), places.into_boxed_slice())
        };
        let zones = Self {
            own,
            groups: zones.into_values().map(group).collect(),
            settings: Settings::below(settings.minimum_healthy_percent),
            plan: ArcSwap::default(),
        };
        zones.reweigh();
        Some(zones)
    }

    pub(super) fn reweigh(&self) {
        let zones: Vec<Zone> = self.groups.iter().map(|(group, _)| zone(group)).collect();
        let plan = Plan::new(&zones, Some(self.own), &self.settings);
        if plan != **self.plan.load() {
            self.plan.store(Arc::new(plan));
        }
    }

    /// The zone for a request; `None` where nobody is available in any.
    pub(super) fn choose(&self, random: u64) -> Option<(&Group, &[u32])> {
        let zone = self.plan.load().choose(random)?;
        self.groups.get(zone).map(|(group, places)| (group, &**places))
    }

    pub(super) fn local_share(&self) -> f64 {
        self.plan.load().share(self.own)
    }
}

fn zone(group: &Group) -> Zone {
    let whole = group.list.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
    let capacity =
        group.list.iter().map(|endpoint| f64::from(endpoint.weight) * endpoint.factor().share());
    Zone { capacity: capacity.sum(), whole, callers: None }
}
