//! Zone preference with spill-over: requests stay in the caller's own zone as long as what is available there suffices,
//! and only what does not fit goes to others. The idea is that of Envoy's zone aware routing.
//!
//! With `a(z)` the available capacity of zone `z` as a share of all (weights times health), and `d(z)` its share of all
//! callers, and `h` the part of the own zone's endpoints that is available, the own zone gets
//!
//! ```text
//! local = min(1, headroom * a(own) / d(own), headroom * h)
//! ```
//!
//! and another zone gets a part of `1 - local` in proportion to what its own callers leave, `max(0, a(z) - d(z))`, or
//! where none leaves anything, to `a(z)`. If everybody does so no zone gets more than `headroom` times its share of
//! the load. Where callers are unknown they are taken to be spread evenly over the zones that have endpoints.

/// How much more than its share of the load a zone may take before requests leave it: crossing zones costs money and
/// latency, and an endpoint or two less must not make that happen.
pub const HEADROOM: f64 = 1.25;
/// The range of headrooms. 1 spills whatever is above the share.
pub const HEADROOM_RANGE: (f64, f64) = (1.0, 100.0);
/// When zones are preferred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// From [`HEADROOM_RANGE`], to which it is clamped.
    pub headroom: f64,
}

/// A zone with endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Zone {
    /// What is available: the sum of weight times share ([`Factor::share`](crate::cluster::outlier::Factor::share)).
    pub capacity: f64,
    /// What would be if all were well: the sum of weights.
    pub whole: f64,
    /// How many call from there, in whatever unit; `None` in any zone where it is not known.
    pub callers: Option<f64>,
}

/// Which share of the requests each zone gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Together 1. Empty where no zone has capacity.
    shares: Box<[f64]>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { headroom: HEADROOM }
    }
}

impl Settings {
    /// Requests leave the zone when less than so many of a hundred of its endpoints are available.
    pub fn below(percent: u8) -> Self {
        Self { headroom: 100.0 / f64::from(percent.max(1)) }
    }
}

impl Plan {
    /// Plans for a caller in zone `own` of `zones`, or one in none of them. To be done when health or endpoints
    /// change, not for each request.
    pub fn new(zones: &[Zone], own: Option<usize>, settings: &Settings) -> Self {
        let capacities: Vec<f64> = zones.iter().map(|zone| positive(zone.capacity)).collect();
        let Some(available) = shares_of(&capacities) else {
            return Self { shares: Box::default() };
        };
        let shares = match own.and_then(|own| Some((own, zones.get(own)?))) {
            Some((own, zone)) => {
                prefer((own, zone), &available, &demand(zones, &available), settings)
            }
            None => available,
        };
        Self { shares: shares.into_boxed_slice() }
    }

    /// The zone for a request, from uniform `random`; `None` where no zone has capacity.
    pub fn choose(&self, random: u64) -> Option<usize> {
        let mut at = random as f64 / 2f64.powi(64);
        let mut last = None;
        for (zone, share) in self.shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            if at < *share {
                return Some(zone);
            }
            at -= share;
            last = Some(zone);
        }
        // What rounding leaves belongs to the last.
        last
    }

    /// The share of the requests that a zone gets, 0 to 1.
    pub fn share(&self, zone: usize) -> f64 {
        self.shares.get(zone).copied().unwrap_or(0.0)
    }
}

fn prefer(
    (own, zone): (usize, &Zone),
    available: &[f64],
    demand: &[f64],
    settings: &Settings,
) -> Vec<f64> {
    let (least, most) = HEADROOM_RANGE;
    let headroom =
        if settings.headroom.is_nan() { HEADROOM } else { settings.headroom.clamp(least, most) };
    let others = |zone: usize, share: f64| if zone == own { 0.0 } else { share };
    let over = available.iter().zip(demand).map(|(available, demand)| available - demand);
    let residual: Vec<f64> =
        over.enumerate().map(|(zone, over)| others(zone, over.max(0.0))).collect();
    let rest: Vec<f64> =
        available.iter().enumerate().map(|(zone, share)| others(zone, *share)).collect();
    let Some(spill) = shares_of(&residual).or_else(|| shares_of(&rest)) else {
        // Nobody else has anything.
        return available.to_vec();
    };
    let local = match demand[own] {
        // Where nobody but we calls from, what is there is for us.
        none if none <= 0.0 => f64::from(u8::from(available[own] > 0.0)),
        demand => (headroom * available[own] / demand).min(1.0),
    };
    // However little the others have: what is left of the zone must not carry all of it.
    let well = if zone.whole > 0.0 { positive(zone.capacity) / zone.whole } else { 1.0 };
    let local = local.min(headroom * well);
    let share =
        |(zone, spill): (usize, f64)| if zone == own { local } else { (1.0 - local) * spill };
    spill.into_iter().enumerate().map(share).collect()
}

/// Each zone's share of the callers.
fn demand(zones: &[Zone], available: &[f64]) -> Vec<f64> {
    let known: Option<Vec<f64>> = zones.iter().map(|zone| zone.callers.map(positive)).collect();
    let even = || {
        let zones = available.iter().filter(|share| **share > 0.0).count().max(1) as f64;
        available.iter().map(|share| if *share > 0.0 { 1.0 / zones } else { 0.0 }).collect()
    };
    known.and_then(|callers| shares_of(&callers)).unwrap_or_else(even)
}

/// What is no number, or below zero, is nothing; what is too much to be added up is a lot.
fn positive(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1e15) }
}

/// Each part of the sum of all; `None` where that is nothing.
fn shares_of(parts: &[f64]) -> Option<Vec<f64>> {
    let sum: f64 = parts.iter().sum();
    (sum > 0.0).then(|| parts.iter().map(|part| part / sum).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zones(capacities: &[f64]) -> Vec<Zone> {
        let zone = |capacity: &f64| Zone { capacity: *capacity, whole: 0.0, callers: None };
        capacities.iter().map(zone).collect()
    }

    fn shares(zones: &[Zone], own: usize) -> Vec<f64> {
        let plan = Plan::new(zones, Some(own), &Settings::default());
        (0..zones.len()).map(|zone| (plan.share(zone) * 1000.0).round() / 1000.0).collect()
    }

    #[test]
    fn what_suffices_stays_in_the_zone() {
        assert_eq!(shares(&zones(&[4.0, 4.0, 4.0]), 1), [0.0, 1.0, 0.0]);
        // One of four is gone: within the headroom.
        assert_eq!(shares(&zones(&[4.0, 3.0, 4.0]), 1), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_goes_where_there_is_room() {
        // Two of ten, a third of the callers: 1.25 * 0.2 / 0.333.
        assert_eq!(shares(&zones(&[4.0, 2.0, 4.0]), 1), [0.125, 0.75, 0.125]);
        // Zone c has twice what it needs, zone b nothing to spare.
        assert_eq!(shares(&zones(&[1.0, 3.0, 6.0]), 0), [0.375, 0.0, 0.625]);
        assert_eq!(shares(&zones(&[0.0, 3.0, 9.0]), 0), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn callers_count_where_they_are_known() {
        let mut zones = zones(&[1.0, 9.0]);
        assert_eq!(shares(&zones, 0), [0.25, 0.75]);
        (zones[0].callers, zones[1].callers) = (Some(2.0), Some(18.0));
        assert_eq!(shares(&zones, 0), [1.0, 0.0], "as many callers as capacity");
        zones[1].callers = None;
        assert_eq!(shares(&zones, 0), [0.25, 0.75], "one unknown is all unknown");
        (zones[0].callers, zones[1].callers) = (Some(0.0), Some(5.0));
        assert_eq!(shares(&zones, 0), [1.0, 0.0]);
    }

    #[test]
    fn who_is_in_no_zone_has_no_preference() {
        let zones = zones(&[1.0, 3.0]);
        for own in [None, Some(2)] {
            let plan = Plan::new(&zones, own, &Settings::default());
            assert_eq!((plan.share(0), plan.share(1), plan.share(2)), (0.25, 0.75, 0.0));
        }
    }

    #[test]
    fn what_is_left_of_a_zone_does_not_carry_all_of_it() {
        let local = |capacity: f64, percent| {
            let zones = [
                Zone { capacity, whole: 10.0, callers: None },
                Zone { capacity: 1.0, whole: 1.0, callers: None },
            ];
            let plan = Plan::new(&zones, Some(0), &Settings::below(percent));
            (plan.share(0) * 100.0).round() / 100.0
        };
        assert_eq!([10.0, 7.0, 3.5, 0.0].map(|capacity| local(capacity, 70)), [1.0, 1.0, 0.5, 0.0]);
        assert_eq!([10.0, 5.0].map(|capacity| local(capacity, 100)), [1.0, 0.5]);
        assert_eq!(local(1.0, 0), 1.0);
    }

    #[test]
    fn nothing_is_chosen_from_nothing() {
        for zones in [zones(&[]), zones(&[0.0, 0.0]), zones(&[f64::NAN, -1.0])] {
            let plan = Plan::new(&zones, Some(0), &Settings::default());
            assert_eq!(plan.choose(0), None);
        }
    }

    proptest! {
        /// All callers together load no zone beyond the headroom, whatever is available.
        #[test]
        fn nobody_is_overloaded(
            parts in proptest::collection::vec((0.0f64..10.0, 0.0f64..10.0), 1..6),
            headroom in 1.0f64..2.0,
        ) {
            let zone = |part: &(f64, f64)| Zone { capacity: part.0, whole: 0.0, callers: Some(part.1) };
            let zones: Vec<Zone> = parts.iter().map(zone).collect();
            let capacity: f64 = parts.iter().map(|part| part.0).sum();
            let callers: f64 = parts.iter().map(|part| part.1).sum();
            prop_assume!(capacity > 0.01 && callers > 0.01);
            let settings = Settings { headroom };
            let mut load = vec![0.0; zones.len()];
            for (own, zone) in zones.iter().enumerate() {
                let plan = Plan::new(&zones, Some(own), &settings);
                for (to, load) in load.iter_mut().enumerate() {
                    *load += plan.share(to) * zone.callers.unwrap() / callers;
                }
            }
            prop_assert!((load.iter().sum::<f64>() - 1.0).abs() < 1e-6);
            for (load, zone) in load.iter().zip(&zones) {
                let share = zone.capacity / capacity;
                prop_assert!(*load <= headroom * share + 1e-6, "{load} on {share}: {zones:?}");
            }
        }

        /// Whatever comes in, a zone with capacity comes out, if there is one.
        #[test]
        fn only_zones_with_capacity_are_chosen(
            capacities in proptest::collection::vec(
                prop_oneof![Just(0.0), Just(f64::INFINITY), Just(f64::MIN_POSITIVE), any::<f64>()], 0..6),
            callers in proptest::option::of(any::<f64>()),
            own in proptest::option::of(0usize..8),
            headroom: f64,
            random in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
        ) {
            let mut zones = zones(&capacities);
            zones.iter_mut().for_each(|zone| zone.callers = callers);
            let settings = Settings { headroom };
            let chosen = Plan::new(&zones, own, &settings).choose(random);
            prop_assert_eq!(chosen.is_none(), capacities.iter().all(|capacity| positive(*capacity) == 0.0));
            prop_assert!(chosen.is_none_or(|zone| capacities[zone] > 0.0));
        }
    }
}
