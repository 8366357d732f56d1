//! The endpoints of a cluster, prepared for picking one of them.

pub mod plan;
pub mod table;
mod zones;

use std::{
    borrow::Cow,
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use leno_api::model::{
    ObjectName,
    traffic_policy::{Balancer, Settings},
};

use super::{
    Endpoint,
    balance::{
        self,
        bounded::{self, FREE, Member, Total},
        draw::Draw,
    },
    ewma::{self, Load},
    outlier::Factor,
};
use plan::{Place, Plan};
use table::Table;
use zones::Zones;

/// How often one is drawn before all are looked at. With half of them ejected one pick in 256 comes to that.
const DRAWS: u32 = 8;
/// Of so many endpoints it is counted what each has under way, to know whether one is over its bound; of more, what the
/// cluster has under way has to do: a request must not cost more the more endpoints there are.
const COUNTED: usize = 64;

/// Endpoints in a stable order, made when the first of them is wanted.
#[derive(Debug)]
pub struct Endpoints {
    /// A later list of the same cluster has a higher number.
    pub number: u64,
    made: OnceLock<Box<Made>>,
    /// What they are made of, where they are not made yet.
    plan: Option<Plan>,
}

#[derive(Debug)]
struct Made {
    all: Group,
    /// Where the balancer goes by a hash.
    table: Option<Arc<Table>>,
    /// Where they are in several zones, and ours is preferred.
    zones: Option<Zones>,
}

/// Some endpoints, to be drawn from.
#[derive(Debug)]
struct Group {
    list: Box<[Arc<Endpoint>]>,
    /// Whether all of them have the same weight.
    even: bool,
    draw: Draw,
}

/// What an attempt needs.
pub struct Wish<'a> {
    /// How one is chosen.
    pub balancer: &'a Balancer,
    /// Those that were tried already, by [`Endpoint::id`].
    pub tried: &'a [u64],
    /// Of the request, where the balancer goes by it; at random without.
    pub hash: Option<u64>,
    /// How much busier than its share an endpoint may be, where the balancer goes by a hash: 1.25.
    pub bound: f64,
    /// Exchanges that the cluster has under way.
    pub under_way: &'a dyn Fn() -> u64,
    /// Whether each endpoint has a breaker of its own.
    pub breakers: bool,
}

impl From<Vec<Arc<Endpoint>>> for Group {
    fn from(list: Vec<Arc<Endpoint>>) -> Self {
        let weights: Vec<u32> = list.iter().map(|endpoint| endpoint.weight).collect();
        Self {
            even: weights.windows(2).all(|pair| pair[0] == pair[1]),
            draw: Draw::new(&weights),
            list: list.into(),
        }
    }
}

impl From<Vec<Arc<Endpoint>>> for Endpoints {
    /// For a balancer that does not hash, without zones.
    fn from(list: Vec<Arc<Endpoint>>) -> Self {
        Made { all: list.into(), table: None, zones: None }.into()
    }
}

impl From<Made> for Endpoints {
    fn from(made: Made) -> Self {
        Self { number: next_number(), made: Box::new(made).into(), plan: None }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl std::ops::Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.made().all.list
    }
}

impl Endpoints {
    /// Those of `plan`. They are made at once where those of `old` were, or where it takes long to prepare for them: a
    /// request is not to wait for that.
    pub fn planned(plan: Plan, old: Option<&Self>) -> Self {
        let old = old.and_then(|old| old.made.get()).map(|made| &**made);
        if old.is_none() && plan.settings.balancer.keys().is_empty() {
            return Self { number: next_number(), made: OnceLock::new(), plan: Some(plan) };
        }
        Made::of(&plan, old).into()
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| self.make())
    }

    #[cold]
    fn make(&self) -> Box<Made> {
        Box::new(match &self.plan {
            Some(plan) => Made::of(plan, None),
            None => Made { all: Vec::new().into(), table: None, zones: None },
        })
    }

    /// Those that are made: who only looks makes nothing.
    pub fn known(&self) -> Option<&[Arc<Endpoint>]> {
        Some(&self.made.get()?.all.list)
    }

    /// For people: those that are made, or what they would be.
    pub fn shown(&self) -> Cow<'_, [Arc<Endpoint>]> {
        match (self.made.get(), &self.plan) {
            (None, Some(plan)) => plan.make(|_| None).into(),
            _ => (&**self).into(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match (self.made.get(), &self.plan) {
            (None, Some(plan)) => plan.places.len(),
            _ => self.len(),
        }
    }

    /// Takes in that shares of endpoints have changed: how much of the traffic stays in our zone depends on it.
    pub fn reweigh(&self) {
        if let Some(zones) = self.made.get().and_then(|made| made.zones.as_ref()) {
            zones.reweigh();
        }
    }

    /// The share of requests that stays in our own zone, 0 to 1, at random; `None` where zones do not count.
    pub fn local_share(&self) -> Option<f64> {
        let share = |made: &Made| made.zones.as_ref().map(Zones::local_share);
        match (self.made.get(), &self.plan) {
            (Some(made), _) => share(made),
            (None, plan) => share(&Made::of(plan.as_ref()?, None)),
        }
    }

    /// The place of the next one, not one of those that were tried unless there is no other. `latency` is what the
    /// endpoint at a place is expected to take; `turn` is counted up with each call.
    pub fn pick(
        &self,
        wish: &Wish<'_>,
        latency: impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        self.made().pick(wish, latency, turn, random)
    }
}

impl std::ops::Deref for Made {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.all.list
    }
}

impl Made {
    /// For a caller in `zone`. What takes long to prepare is taken over from `old` where that is the same.
    fn new(
        list: Vec<Arc<Endpoint>>,
        settings: &Settings,
        zone: Option<&str>,
        old: Option<&Self>,
    ) -> Self {
        let kept = old.and_then(|old| Some((&*old.all.list, old.table.as_ref()?)));
        let table = Table::new(&list, &settings.balancer, kept);
        // A key belongs to an endpoint wherever that is.
        let zone = zone.filter(|_| table.is_none());
        let zones = zone.and_then(|zone| Zones::new(&list, &settings.zones, zone));
        Self { all: list.into(), table, zones }
    }

    /// Those of `plan`, with what is known from `old`.
    fn of(plan: &Plan, old: Option<&Self>) -> Self {
        let list = old.into_iter().flat_map(|old| old.iter());
        let known: HashMap<(&ObjectName, SocketAddr), &Arc<Endpoint>> =
            list.filter_map(|endpoint| Some((endpoint.place()?, endpoint))).collect();
        let at = |place: &Place| {
            let address = SocketAddr::new(place.workload.address, place.port);
            known.get(&(&place.workload.name, address)).copied()
        };
        Self::new(plan.make(at), &plan.settings, plan.zone.as_deref(), old)
    }

    fn pick(
        &self,
        wish: &Wish<'_>,
        latency: impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let any = |place: usize| share(&self[place], wish.breakers);
        let untried = |place: usize| match wish.tried.contains(&self[place].id) {
            true => Factor::NONE,
            false => any(place),
        };
        let first = self.pick_among(wish, &untried, &latency, turn, random);
        if first.is_some() || wish.tried.is_empty() {
            return first;
        }
        self.pick_among(wish, &any, &latency, turn, random)
    }

    fn pick_among(
        &self,
        wish: &Wish<'_>,
        factor: &impl Fn(usize) -> Factor,
        latency: &impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        if let Some(table) = &self.table {
            return self.pick_by_hash(table, wish, factor, random);
        }
        let group = self.zones.as_ref().and_then(|zones| zones.choose(random()));
        let near = group.and_then(|(group, places)| {
            let place = |at: usize| places[at] as usize;
            let (factor, latency) = (|at| factor(place(at)), |at| latency(place(at)));
            group.pick(wish.balancer, &factor, &latency, turn, random).map(place)
        });
        near.or_else(|| self.all.pick(wish.balancer, factor, latency, turn, random))
    }

    fn pick_by_hash(
        &self,
        table: &Table,
        wish: &Wish<'_>,
        factor: &impl Fn(usize) -> Factor,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let member = |place: usize| {
            let endpoint = &self[place];
            Member { weight: endpoint.weight, active: endpoint.active(), factor: factor(place) }
        };
        let total = || {
            let members = || (0..self.len()).map(member);
            let (active, weight) = match self.len() {
                ..=COUNTED => (
                    members().map(|member| u64::from(member.active)).sum(),
                    members().map(|member| member.capacity()).sum(),
                ),
                _ => ((wish.under_way)(), self.all.draw.total()),
            };
            Total { active, weight, bound: wish.bound }
        };
        let hash = wish.hash.unwrap_or_else(random);
        match table {
            Table::Ring(ring, _) => bounded::pick(ring.walk(hash), self.len(), member, FREE, total),
            Table::Maglev(table) => {
                bounded::pick(table.walk(hash), self.len(), member, FREE, total)
            }
        }
    }
}

/// Which share of its weight an endpoint gets now. Nobody has heard anything of most of them.
fn share(endpoint: &Endpoint, breakers: bool) -> Factor {
    let Some(vitals) = endpoint.known_vitals() else { return Factor::FULL };
    let breaker = if breakers { vitals.breaker() } else { None };
    match breaker {
        Some(breaker) if !breaker.gate.lets_through() => Factor::NONE,
        _ => vitals.factor(),
    }
}

impl Group {
    fn pick(
        &self,
        balancer: &Balancer,
        factor: &impl Fn(usize) -> Factor,
        latency: &impl Fn(usize) -> f64,
        turn: &AtomicU64,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let one = |random: &mut dyn FnMut() -> u64| match balancer {
            Balancer::RoundRobin => {
                balance::round_robin(&self.list, turn.fetch_add(1, Ordering::Relaxed))
            }
            Balancer::LeastRequest => balance::least_request(&self.list, self.even, random),
            Balancer::PeakEwma { .. }
            | Balancer::Random
            | Balancer::RingHash { .. }
            | Balancer::Maglev { .. } => balance::random(&self.list, random),
        };
        if let Balancer::PeakEwma { .. } = balancer {
            let load = |place: usize| Load {
                latency: latency(place),
                active: self.list[place].active(),
                factor: factor(place),
            };
            return ewma::pick(&self.draw, load, random);
        }
        // Who is not taken is drawn again, so that its share goes to all others and not to its neighbour.
        for _ in 0..DRAWS {
            let place = one(random)?;
            if factor(place).accepts(random) {
                return Some(place);
            }
        }
        let start = one(random)?;
        (start..self.list.len()).chain(0..start).find(|place| factor(*place) != Factor::NONE)
    }
}

#[cfg(test)]
mod tests;
