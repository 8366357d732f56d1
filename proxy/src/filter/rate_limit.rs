//! Rate limits: how many requests of a route, a caller, a header's value are let through in a time. Pure but for the
//! counters that workers share: `now` is the time since any fixed start, and where it goes backwards no time has passed.
//!
//! - [`bucket`]: one limit's state, in one atomic word: the token bucket, as GCRA.
//! - [`keys`]: a bucket for each caller or value, of bounded number.
//! - [`counter`]: the buckets of one limit: what all workers share, and what each has for itself.
//! - [`headers`]: what callers are told: `RateLimit`, `RateLimit-Policy`, `Retry-After`.
//! - [`lease`]: a share in a limit that all proxies have together, granted by the control plane.
//!
//! A local limit is one for the whole sidecar, not for each worker: its bucket is one word that all of them take from.
//! A request must be within all limits that apply to it. It is taken from them one after the other; what was taken
//! before one refuses is given back.

pub mod bucket;
pub mod counter;
pub mod headers;
pub mod keys;
pub mod lease;

use std::{
    hash::Hasher,
    net::IpAddr,
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method};
use leno_api::model::rate_limit_policy::{self as model, LimitKey, LimitScope};
use prometheus::IntCounter;

use self::{
    bucket::{Bucket, Decision, Rate, Verdict},
    counter::{Counter, ONLY, Tables, write_part},
    headers::Named,
    keys::Key,
};

/// All callers that have not proven who they are have one count together.
const UNKNOWN: &str = "unknown";

/// What a limit can look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The method.
    pub method: &'a Method,
    /// Without query.
    pub path: &'a str,
    /// Also what authentication made of claims.
    pub headers: &'a HeaderMap,
    /// The caller's proven identity.
    pub caller: Option<&'a str>,
    /// The address of the connection's peer.
    pub source: IpAddr,
}

/// One limit of a policy, for one service.
#[derive(Debug)]
pub struct Limit {
    /// `shop/orders`.
    pub policy: Arc<str>,
    /// As configured.
    pub model: model::Limit,
    /// How much.
    pub rate: Rate,
    /// Its buckets.
    pub counter: Arc<Counter>,
    /// How many it refused, in the registry, once there was one. Who counts late, when the limit is gone, does not bring
    /// its series back.
    pub refused: OnceLock<IntCounter>,
    named: Named,
    taken_over: Once,
}

/// What an admitted caller is told: of the limit of which least is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// For `RateLimit-Policy`.
    pub policy: Option<HeaderValue>,
    /// For `RateLimit`.
    pub limit: Option<HeaderValue>,
}

/// A request above a limit.
#[derive(Debug)]
pub struct Exceeded<'a> {
    /// Which one.
    pub limit: &'a Limit,
    /// After which time one more is let through.
    pub wait: Duration,
    /// What the caller is told of it.
    pub standing: Standing,
}

impl Limit {
    /// With what `old` has counted, where that was the same limit with the same keys.
    pub fn new(policy: Arc<str>, model: model::Limit, old: Option<&Self>) -> Self {
        let rate = Rate::new(model.requests, model.per, model.burst);
        let (keyed, global) = (!model.by.is_empty(), model.scope == LimitScope::Global);
        let kept = old.filter(|old| old.model.by == model.by && old.counter.fits(keyed, global));
        let counter = kept
            .map_or_else(|| Arc::new(Counter::new(rate, keyed, global)), |old| old.counter.clone());
        let named = Named::new(&model.name, &rate);
        let refused = OnceLock::new();
        Self { policy, model, rate, counter, refused, named, taken_over: Once::new() }
    }

    /// Makes the buckets go by the numbers of this limit, which may be others than those under which they were used
    /// last. To be called before they are used; from the second time on it costs nothing.
    pub fn take_over(&self, now: Duration) {
        self.taken_over.call_once(|| self.counter.change(&self.rate, now));
    }

    fn applies(&self, facts: &Facts<'_>) -> bool {
        self.model.applies(facts.method, facts.path, facts.headers)
    }

    fn key(&self, facts: &Facts<'_>) -> Key {
        if self.model.by.is_empty() {
            return ONLY;
        }
        self.counter.key(|hasher| {
            for part in &self.model.by {
                write(hasher, part, facts);
            }
        })
    }

    fn take(&self, facts: &Facts<'_>, now: Duration, tables: &mut Tables) -> Decision {
        self.take_over(now);
        let global = self.counter.is_global();
        self.counter.with(self.key(facts), tables, now, |bucket| {
            if !global {
                return bucket.take(&self.rate, now, 1);
            }
            bucket.want();
            bucket.take(&self.rate.part(bucket.share()), now, 1)
        })
    }

    fn give_back(&self, facts: &Facts<'_>, now: Duration, tables: &mut Tables) {
        let give_back = |bucket: &Bucket| bucket.give_back(&self.rate.part(bucket.share()), 1);
        self.counter.with(self.key(facts), tables, now, give_back);
    }

    fn standing(&self, decision: &Decision) -> Standing {
        Standing { policy: self.named.policy().cloned(), limit: self.named.value(decision) }
    }
}

/// Takes a request from all of `limits` that apply to it; `None` where none does.
///
/// # Errors
/// [`Exceeded`] where one of them has no more; then it is taken from none.
pub fn take<'a>(
    limits: &'a [Arc<Limit>],
    facts: &Facts<'_>,
    now: Duration,
    tables: &mut Tables,
) -> Result<Option<Standing>, Exceeded<'a>> {
    let mut tightest: Option<(&Limit, Decision)> = None;
    for (at, limit) in limits.iter().enumerate().filter(|(_, limit)| limit.applies(facts)) {
        let decision = limit.take(facts, now, tables);
        if let Verdict::Limited(wait) = decision.verdict {
            for before in limits[..at].iter().filter(|before| before.applies(facts)) {
                before.give_back(facts, now, tables);
            }
            let (wait, standing) = (wait.unwrap_or(Duration::MAX), limit.standing(&decision));
            return Err(Exceeded { limit, wait, standing });
        }
        if tightest.is_none_or(|(_, before)| decision.remaining < before.remaining) {
            tightest = Some((limit, decision));
        }
    }
    Ok(tightest.map(|(limit, decision)| limit.standing(&decision)))
}

/// Writes what `part` of the key is for this request.
fn write(hasher: &mut dyn Hasher, part: &LimitKey, facts: &Facts<'_>) {
    match part {
        LimitKey::Caller => write_part(hasher, facts.caller.unwrap_or(UNKNOWN).as_bytes()),
        LimitKey::Path => write_part(hasher, facts.path.as_bytes()),
        LimitKey::SourceIp => match facts.source {
            IpAddr::V4(address) => write_part(hasher, &address.octets()),
            IpAddr::V6(address) => write_part(hasher, &address.octets()),
        },
        LimitKey::Header(name) => {
            // Several lines are several parts, and none differs from an empty one by the count.
            let mut count = 0_u32;
            for value in facts.headers.get_all(name) {
                write_part(hasher, value.as_bytes());
                count += 1;
            }
            hasher.write(&count.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
