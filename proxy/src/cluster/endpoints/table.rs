//! The table of a balancer that goes by a hash: which endpoint a request belongs to.

use std::sync::Arc;

use leno_api::model::traffic_policy::Balancer;

use crate::cluster::{
    Endpoint,
    balance::{
        maglev::{self, Size},
        ring_hash::Ring,
    },
};

/// Of one list of endpoints. A ring has up to 16 MiB, a Maglev table 256 KiB.
#[derive(Debug)]
pub enum Table {
    /// A ring, and how many points were asked for.
    Ring(Ring, u32),
    /// A table.
    Maglev(maglev::Table),
}

impl Table {
    /// As `balancer` wants it, if it hashes; `old` where that says the same of the same endpoints.
    pub(super) fn new(
        list: &[Arc<Endpoint>],
        balancer: &Balancer,
        old: Option<(&[Arc<Endpoint>], &Arc<Self>)>,
    ) -> Option<Arc<Self>> {
        if balancer.keys().is_empty() {
            return None;
        }
        let kept = old.filter(|(before, table)| table.suits(balancer) && is_same(before, list));
        if let Some((_, table)) = kept {
            return Some(table.clone());
        }
        let names: Vec<String> = list.iter().map(|endpoint| endpoint.workload()).collect();
        let weighed = names.iter().zip(list).map(|(name, endpoint)| (&**name, endpoint.weight));
        Some(Arc::new(match balancer {
            Balancer::RingHash { minimum_size, .. } => {
                Self::Ring(Ring::new(weighed, *minimum_size), *minimum_size)
            }
            _ => Self::Maglev(maglev::Table::new(weighed, Size::Standard)),
        }))
    }

    fn suits(&self, balancer: &Balancer) -> bool {
        match (self, balancer) {
            (Self::Ring(_, size), Balancer::RingHash { minimum_size, .. }) => size == minimum_size,
            (Self::Maglev(_), Balancer::Maglev { .. }) => true,
            _ => false,
        }
    }
}

/// Whether a table of the one is a table of the other.
fn is_same(one: &[Arc<Endpoint>], other: &[Arc<Endpoint>]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            one.weight == other.weight && (one.id == other.id || one.workload() == other.workload())
        })
}
