//! Limits that the proxies of a service have together, shared out by what each of them is asked for. Pure: `now` is the
//! time since any fixed start.
//!
//! A share is a part of a limit, in millionths, for a short time: the control plane needs not know how much a limit is. At
//! every moment the shares of one limit (of one key) that are in force come to no more than the whole, whatever order
//! proxies ask in: a proxy gets what it should have, or what the others have left of it, until they have asked again and
//! got less. A proxy that is gone gives its share back by not asking again.
//!
//! - `allocate.rs`: who should have how much
//! - this file: who has how much

mod allocate;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

pub use self::allocate::{WHOLE, allocate};

/// A proxy asks again after this, where few share a limit.
const PACE: Duration = Duration::from_millis(250);
/// Per proxy that shares a limit: so that however many there are, each limit costs 400 requests a second.
const PACE_PER_PROXY: Duration = Duration::from_micros(2_500);
/// A share is given back if its holder has not asked for so many times in a row.
const PATIENCE: u32 = 8;
/// Limits, shares of all limits together, keys in one request for a limit, and limits in one request. A share takes
/// about 100 bytes: 25 MB.
const MAX_LIMITS: usize = 10_000;
const MAX_SHARES: usize = 250_000;
pub const MAX_KEYS: usize = 256;
pub const MAX_LIMITS_ASKED: usize = 1_024;
/// Proxies of all limits together: each counts once for every limit that it asks for. About 50 bytes: 13 MB.
const MAX_MEMBERS: usize = 250_000;
/// The part of each of these that one namespace may take: proxies name limits and themselves as they like, and one of them
/// must not take the room of other namespaces.
const OF_NAMESPACE: usize = 10;
/// What nobody asks for any more is looked for this often.
const SWEEP: Duration = Duration::from_secs(10);

/// Which limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LimitId {
    /// Of service and policy.
    pub namespace: String,
    pub service: String,
    pub policy: String,
    /// Its name within the policy.
    pub limit: String,
}

/// How much a proxy is asked for, or gets, under one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub key: u64,
    /// Of the limit.
    pub millionths: u32,
}

/// What a proxy gets of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// That share the limit now.
    pub proxies: u32,
    /// Keys that are missing here have no share of their own.
    pub parts: Vec<Part>,
    pub valid_for: Duration,
    pub ask_again_after: Duration,
}

/// Who has which share.
#[derive(Debug, Default)]
pub struct Ledger {
    pools: HashMap<LimitId, Pool>,
    /// By namespace.
    used: HashMap<String, Used>,
    all: Used,
    swept_at: Duration,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    limits: usize,
    members: usize,
    shares: usize,
}

/// One limit.
#[derive(Debug, Default)]
struct Pool {
    /// Until when each of them counts.
    proxies: HashMap<Arc<str>, Duration>,
    keys: HashMap<u64, HashMap<Arc<str>, Share>>,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    demand: u32,
    millionths: u32,
}

impl Ledger {
    /// Shares a limit out to `proxy`, which asks for these keys and for no others any more. `None` where there are as
    /// many limits as there may be, or as many proxies that ask for them.
    pub fn lease(
        &mut self,
        id: &LimitId,
        proxy: &Arc<str>,
        wishes: &[Part],
        now: Duration,
    ) -> Option<Grant> {
        self.sweep(now);
        let known = self.pools.get_mut(id);
        let before = known.as_ref().map_or_else(Used::default, |pool| pool.used());
        if let Some(pool) = known {
            pool.expire(now);
        }
        let pool = self.pools.get(id);
        let is_member = pool.is_some_and(|pool| pool.proxies.contains_key(proxy));
        let now_used = pool.map_or_else(Used::default, Pool::used);
        self.note(&id.namespace, before, now_used);
        let room = self.room(&id.namespace);
        if (now_used.limits == 0 && room.limits == 0) || (!is_member && room.members == 0) {
            return None;
        }
        let pool = self.pools.entry(id.clone()).or_default();
        let ask_again_after = PACE.max(PACE_PER_PROXY.saturating_mul(count(pool.proxies.len())));
        let valid_for = ask_again_after.saturating_mul(PATIENCE);
        pool.proxies.insert(proxy.clone(), now.saturating_add(valid_for));
        pool.release(proxy, wishes);
        let mut room = room.shares + (now_used.shares - pool.shares());
        let mut parts = Vec::with_capacity(wishes.len().min(MAX_KEYS));
        for wish in wishes.iter().take(MAX_KEYS) {
            parts.extend(pool.share(proxy, *wish, &mut room));
        }
        let (proxies, after) = (count(pool.proxies.len()), pool.used());
        self.note(&id.namespace, now_used, after);
        Some(Grant { proxies, parts, valid_for, ask_again_after })
    }

    /// How much more there may be in a namespace.
    fn room(&self, namespace: &str) -> Used {
        let own = self.used.get(namespace).copied().unwrap_or_default();
        let left = |most: usize, all: usize, own: usize| {
            most.saturating_sub(all).min((most / OF_NAMESPACE).saturating_sub(own))
        };
        Used {
            limits: left(MAX_LIMITS, self.all.limits, own.limits),
            members: left(MAX_MEMBERS, self.all.members, own.members),
            shares: left(MAX_SHARES, self.all.shares, own.shares),
        }
    }

    /// Takes in that a limit of a namespace has changed.
    fn note(&mut self, namespace: &str, before: Used, after: Used) {
        if before == after {
            return;
        }
        let own = self.used.entry(namespace.to_owned()).or_default();
        for used in [own, &mut self.all] {
            used.limits = used.limits - before.limits + after.limits;
            used.members = used.members - before.members + after.members;
            used.shares = used.shares - before.shares + after.shares;
        }
    }

    /// Shares of all limits together.
    pub fn len(&self) -> usize {
        self.all.shares
    }

    /// Whether nobody has any.
    pub fn is_empty(&self) -> bool {
        self.all.shares == 0
    }

    /// Forgets limits that nobody asks for any more.
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept_at) < SWEEP {
            return;
        }
        self.swept_at = now;
        self.pools.retain(|_, pool| {
            pool.expire(now);
            !pool.proxies.is_empty()
        });
        self.used.clear();
        self.all = Used::default();
        let pools = std::mem::take(&mut self.pools);
        for (id, pool) in &pools {
            self.note(&id.namespace, Used::default(), pool.used());
        }
        self.pools = pools;
    }
}

impl Pool {
    fn used(&self) -> Used {
        Used { limits: 1, members: self.proxies.len(), shares: self.shares() }
    }

    fn shares(&self) -> usize {
        self.keys.values().map(HashMap::len).sum()
    }

    /// Takes back what those had who do not ask any more.
    fn expire(&mut self, now: Duration) {
        let before = self.proxies.len();
        self.proxies.retain(|_, until| now < *until);
        if self.proxies.len() == before {
            return;
        }
        let proxies = &self.proxies;
        self.keys.retain(|_, holders| {
            holders.retain(|proxy, _| proxies.contains_key(proxy));
            !holders.is_empty()
        });
    }

    /// Takes back from `proxy` what it asks for no more.
    fn release(&mut self, proxy: &Arc<str>, wishes: &[Part]) {
        let wanted: HashSet<u64> = wishes.iter().map(|wish| wish.key).collect();
        self.keys.retain(|key, holders| {
            if !wanted.contains(key) {
                holders.remove(proxy);
            }
            !holders.is_empty()
        });
    }

    fn share(&mut self, proxy: &Arc<str>, wish: Part, room: &mut usize) -> Option<Part> {
        let known = self.keys.get(&wish.key).is_some_and(|holders| holders.contains_key(proxy));
        if !known {
            *room = room.checked_sub(1)?;
        }
        let holders = self.keys.entry(wish.key).or_default();
        let own = Share { demand: wish.millionths, millionths: 0 };
        let demands: Vec<u32> = std::iter::once(own.demand)
            .chain(holders.iter().filter(|(name, _)| *name != proxy).map(|(_, other)| other.demand))
            .collect();
        let others: u32 = holders
            .iter()
            .filter(|(name, _)| *name != proxy)
            .map(|(_, other)| other.millionths)
            .sum();
        let target = allocate(&demands).first().copied().unwrap_or(0);
        let millionths = target.min(WHOLE.saturating_sub(others));
        holders.insert(proxy.clone(), Share { millionths, ..own });
        Some(Part { key: wish.key, millionths })
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
