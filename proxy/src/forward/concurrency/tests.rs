use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    time::Duration,
};

use proptest::prelude::*;

use super::{
    gate::{Arrival, Gate, HEALTH_SLOTS, MOST_WAITING, Next, Priority},
    gradient::{Gradient, HIGHEST, LOWEST, Sample, Settings},
    queue::{INTERVAL, Queue, TARGET, Ticket},
    shares,
};

const ALL: [Priority; 4] =
    [Priority::Health, Priority::Critical, Priority::Normal, Priority::Sheddable];

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// SplitMix64: deterministic and uniform.
fn generator(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// 0 to 1, without either.
fn uniform(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// A server that does so many things at once, each in `service` seconds; with more, each takes its share longer.
struct Knee {
    capacity: f64,
    service: f64,
    noise: f64,
}

impl Knee {
    /// One window in which `offered` requests want to be under way.
    fn window(&self, limit: u32, offered: u32, random: &mut impl FnMut() -> u64) -> Sample {
        let under_way = limit.min(offered);
        let noise = 1.0 + self.noise * (uniform(random()) - 0.5);
        let latency = self.service * (f64::from(under_way) / self.capacity).max(1.0) * noise;
        let count = (f64::from(under_way) / latency * 0.1) as u64;
        let latency_sum = Duration::from_secs_f64(latency * count as f64);
        Sample { count, latency_sum, most_under_way: under_way }
    }
}

/// Windows of 100 ms; the limits outside of probes, and the share of all windows' possible throughput that was used.
fn drive(
    gradient: &mut Gradient,
    knee: &Knee,
    offered: u32,
    windows: std::ops::Range<u64>,
) -> (Vec<u32>, f64) {
    let mut random = generator(windows.start + 1);
    let (mut limits, mut used) = (Vec::new(), 0.0);
    let count = windows.end - windows.start;
    for window in windows {
        let limit = gradient.limit();
        let sample = knee.window(limit, offered, &mut random);
        used += (f64::from(limit.min(offered)) / knee.capacity).min(1.0);
        gradient.push(at(window * 100), sample, random());
        if !gradient.is_probing() {
            limits.push(gradient.limit());
        }
    }
    (limits, used / count as f64)
}

#[test]
fn the_limit_finds_the_knee_and_stays() {
    for capacity in [4.0, 10.0, 50.0, 200.0] {
        for initial in [3, 20, 1000] {
            let knee = Knee { capacity, service: 0.02, noise: 0.2 };
            let mut gradient = Gradient::new(Settings { initial, ..Settings::default() });
            // Begun at many times the capacity there is nothing to compare with: each probe gets closer.
            drive(&mut gradient, &knee, 100_000, 0..5000);
            // Ten minutes at several times the capacity: no drift.
            let (limits, used) = drive(&mut gradient, &knee, 100_000, 5000..11_000);
            let (least, most) = (limits.iter().min().unwrap(), limits.iter().max().unwrap());
            let room = 1.2 * (1.5 * capacity + (1.5 * capacity).sqrt() / 2.0) + 3.0;
            let case = format!("{capacity} from {initial}: {least} to {most}, {used} used");
            assert!(f64::from(*least) >= 0.95 * capacity, "{case}");
            assert!(f64::from(*most) <= room, "{case}");
            assert!(used > 0.99, "{case}");
        }
    }
}

#[test]
fn the_limit_follows_an_application_that_changes() {
    let mut gradient = Gradient::new(Settings::default());
    let at_first = Knee { capacity: 40.0, service: 0.02, noise: 0.1 };
    drive(&mut gradient, &at_first, 100_000, 0..2000);
    // A third of it is gone, as when two of six cores are.
    let smaller = Knee { capacity: 10.0, ..at_first };
    drive(&mut gradient, &smaller, 100_000, 2000..2100);
    assert!(gradient.limit() <= 35, "{} after ten seconds", gradient.limit());
    // Back: within a minute as large as before.
    let at_first = Knee { capacity: 40.0, ..smaller };
    drive(&mut gradient, &at_first, 100_000, 2100..2700);
    assert!(gradient.limit() >= 40, "{} a minute after", gradient.limit());
    // Three times slower at any load, for good: falls at first, and comes back once a probe has seen it.
    let slower = Knee { service: 0.06, ..at_first };
    drive(&mut gradient, &slower, 100_000, 2700..3300);
    assert!(gradient.limit() >= 40, "{} though as many fit as before", gradient.limit());
    assert!(gradient.unloaded().unwrap() > at(50), "{:?}", gradient.unloaded());
    // And quick again.
    drive(&mut gradient, &at_first, 100_000, 3300..3900);
    assert!((38..=100).contains(&gradient.limit()), "{}", gradient.limit());
    assert!(gradient.unloaded().unwrap() < at(25), "{:?}", gradient.unloaded());
}

#[test]
fn a_limit_that_halves_is_looked_into() {
    // Without any other probe than this.
    let probe_every = Duration::from_secs(1_000_000);
    let mut gradient = Gradient::new(Settings { probe_every, ..Settings::default() });
    let knee = Knee { capacity: 40.0, service: 0.02, noise: 0.1 };
    drive(&mut gradient, &knee, 100_000, 0..600);
    assert!(gradient.limit() >= 40, "{}", gradient.limit());
    drive(&mut gradient, &Knee { service: 0.06, ..knee }, 100_000, 600..1200);
    assert!(gradient.limit() >= 40, "{} though as many fit as before", gradient.limit());
}

#[test]
fn a_load_that_leaves_room_is_not_probed() {
    let mut gradient = Gradient::new(Settings::default());
    let knee = Knee { capacity: 40.0, service: 0.02, noise: 0.1 };
    drive(&mut gradient, &knee, 30, 0..600);
    for turn in 12..200 {
        let begin = turn * 50;
        // Mostly more than half of the limit, for a moment now and then less.
        let (busy, _) = drive(&mut gradient, &knee, 30, begin..begin + 45);
        let (quiet, _) = drive(&mut gradient, &knee, 5, begin + 45..begin + 50);
        assert_eq!(busy.len() + quiet.len(), 50, "a probe in turn {turn}");
    }
    assert!(gradient.limit() >= 40, "{}", gradient.limit());
}

#[test]
fn an_idle_application_changes_nothing() {
    let knee = Knee { capacity: 40.0, service: 0.02, noise: 0.1 };
    let mut gradient = Gradient::new(Settings { initial: 50, ..Settings::default() });
    drive(&mut gradient, &knee, 5, 0..10_000);
    assert!(!gradient.is_probing() || gradient.limit() == 25);
    let (limits, _) = drive(&mut gradient, &knee, 5, 10_000..11_000);
    assert!(limits.iter().all(|limit| *limit == 50), "{limits:?}");
    drive(&mut gradient, &knee, 0, 11_000..12_000);
    assert_eq!(gradient.limit(), 50);
}

#[test]
fn settings_are_kept_within_reason() {
    let odd = Settings {
        min: 0,
        max: 0,
        initial: u32::MAX,
        tolerance_percent: 0,
        probe_every: Duration::ZERO,
    };
    let mut gradient = Gradient::new(odd);
    assert_eq!(gradient.limit(), LOWEST);
    gradient.reconfigure(Settings { min: u32::MAX, max: u32::MAX, ..odd });
    assert_eq!(gradient.limit(), HIGHEST);
    gradient.reconfigure(Settings::default());
    // It begins with a probe, at half.
    assert_eq!((gradient.limit(), gradient.is_probing()), (500, true));
}

#[test]
fn a_queue_that_stands_is_cut_short() {
    let mut queue = Queue::default();
    // A burst: all may wait for an interval.
    for ticket in 0..5 {
        queue.push(at(1000), ticket);
    }
    assert_eq!((queue.overdue(at(1099)), queue.due()), (None, Some(at(1100))));
    assert_eq!(queue.pop(at(1050)), Some(0));
    // From 1100 on it has not been empty for an interval: who waited longer than the target goes.
    queue.push(at(1097), 5);
    for ticket in 1..5 {
        assert_eq!(queue.overdue(at(1100)), Some(ticket));
    }
    assert_eq!((queue.overdue(at(1101)), queue.due()), (None, Some(at(1102))));
    assert_eq!(queue.overdue(at(1102)), Some(5));
    // Empty: the next burst may wait again.
    queue.push(at(1103), 6);
    assert_eq!(queue.due(), Some(at(1203)));
    assert!(queue.remove(at(1110), 6) && !queue.remove(at(1110), 6) && queue.is_empty());
}

#[test]
fn the_last_slots_are_for_those_who_matter() {
    let mut gate = Gate::new(20);
    let mut runs = |priority| {
        let run = |gate: &mut Gate| gate.arrive(at(0), priority) == Arrival::Run;
        (0..100).take_while(|_| run(&mut gate)).count() as u32
    };
    assert_eq!(runs(Priority::Sheddable), 16);
    assert_eq!(runs(Priority::Normal), 2);
    assert_eq!(runs(Priority::Critical), 2);
    assert_eq!(runs(Priority::Health), HEALTH_SLOTS);
    assert_eq!((gate.running(), gate.take_most_running()), (24, 24));
    for _ in 0..24 {
        gate.leave();
    }
    // The first asked again counts from what still runs.
    assert_eq!((gate.running(), gate.take_most_running(), gate.take_most_running()), (0, 24, 0));
}

#[test]
fn a_full_queue_makes_room_for_who_matters_more() {
    let mut gate = Gate::new(3);
    let mut last = None;
    while gate.waiting() < MOST_WAITING {
        if let Arrival::Wait { ticket, refused } = gate.arrive(at(0), Priority::Normal) {
            assert_eq!(refused, None);
            last = Some(ticket);
        }
    }
    for priority in [Priority::Normal, Priority::Sheddable] {
        assert_eq!(gate.arrive(at(0), priority), Arrival::Refused);
    }
    assert_eq!(gate.arrive(at(0), Priority::Critical), Arrival::Run);
    let Arrival::Wait { refused, .. } = gate.arrive(at(0), Priority::Critical) else {
        panic!("the limit is 3");
    };
    assert_eq!((refused, gate.waiting()), (last, MOST_WAITING));
}

/// A server with `capacity` slots of its own and a queue in front of them, callers that give up after a second, and a
/// Poisson stream of `rate` requests a second. Of the second half, per second: answers in time, and requests; and the
/// time in which 99 % of the answers came.
fn serve(capacity: usize, rate: f64, seconds: u64, protected: bool) -> (f64, f64, f64) {
    const SERVICE: f64 = 0.05;
    let mut random = generator(42);
    let mut gradient = Gradient::new(Settings::default());
    let mut gate = Gate::new(gradient.limit());
    if !protected {
        gate.set_limit(u32::MAX);
    }
    // Times in nanoseconds; (end, start at the server, arrival at the gate).
    let mut ends: BinaryHeap<Reverse<(u64, u64, u64)>> = BinaryHeap::new();
    let mut free: BinaryHeap<Reverse<u64>> = (0..capacity).map(|_| Reverse(0)).collect();
    let mut waiting: HashMap<Ticket, u64> = HashMap::new();
    let mut sample = Sample::default();
    let (mut arrival, mut tick, mut asked_for, mut times) = (0u64, 0u64, 0u64, Vec::new());
    let end = seconds * 1_000_000_000;
    let warm = end / 2;
    loop {
        let first_end = ends.peek().map_or(u64::MAX, |Reverse((end, ..))| *end);
        let due = gate.due().map_or(u64::MAX, |due| due.as_nanos() as u64);
        let now = arrival.min(tick).min(first_end).min(due);
        if now >= end {
            break;
        }
        let mut begun = Vec::new();
        if now == first_end {
            let (_, start, asked) = ends.pop().unwrap().0;
            gate.leave();
            sample.count += 1;
            sample.latency_sum += Duration::from_nanos(now - start);
            if now > warm && now - asked < 1_000_000_000 {
                times.push(now - asked);
            }
        } else if now == arrival {
            asked_for += u64::from(now > warm);
            match gate.arrive(Duration::from_nanos(now), Priority::Normal) {
                Arrival::Run => begun.push(now),
                Arrival::Wait { ticket, refused } => {
                    waiting.insert(ticket, now);
                    waiting.remove(&refused.unwrap_or(0));
                }
                Arrival::Refused => {}
            }
            arrival += (-uniform(random()).ln() / rate * 1e9) as u64;
        } else if now == tick {
            sample.most_under_way = gate.take_most_running();
            let limit =
                gradient.push(Duration::from_nanos(now), std::mem::take(&mut sample), random());
            if protected {
                gate.set_limit(limit);
            }
            tick += 100_000_000;
        }
        while let Some(next) = gate.next(Duration::from_nanos(now)) {
            match next {
                Next::Run(ticket) => begun.push(waiting.remove(&ticket).unwrap()),
                Next::Refuse(ticket) => _ = waiting.remove(&ticket).unwrap(),
            }
        }
        for asked in begun {
            let Reverse(slot) = free.pop().unwrap();
            let took = -uniform(random()).ln() * SERVICE * 1e9;
            let done = slot.max(now) + took as u64;
            free.push(Reverse(done));
            ends.push(Reverse((done, now, asked)));
        }
    }
    times.sort_unstable();
    let late = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    let per_second = 2.0 / seconds as f64;
    (times.len() as f64 * per_second, asked_for as f64 * per_second, late as f64 / 1e9)
}

#[test]
fn twice_the_load_leaves_the_goodput() {
    for capacity in [11, 50] {
        let most = capacity as f64 / 0.05;
        let (good, _, late) = serve(capacity, 2.0 * most, 60, true);
        assert!(good >= 0.95 * most, "{good} of {most}");
        assert!(late < 0.6, "{late} s");
        // Without a gate nothing comes in time, and the test can tell.
        let (good, ..) = serve(capacity, 2.0 * most, 60, false);
        assert!(good < 0.2 * most, "{good} of {most}");
    }
}

#[test]
fn a_load_that_fits_is_not_touched() {
    let most = 50.0 / 0.05;
    let (good, asked_for, late) = serve(50, 0.6 * most, 60, true);
    assert!(good >= 0.999 * asked_for, "{good} of {asked_for}");
    assert!(late < 0.3, "{late} s");
}

#[test]
fn shares_of_nothing() {
    assert_eq!(shares(10, &[]), Vec::<u32>::new());
    assert_eq!(shares(0, &[5, 5]), [0, 0]);
    assert_eq!(shares(10, &[0, 0]), [5, 5]);
    assert_eq!(shares(10, &[100, 1]), [9, 1]);
    assert_eq!(
        shares(u32::MAX, &[u32::MAX, u32::MAX]).iter().map(|s| u64::from(*s)).sum::<u64>(),
        u64::from(u32::MAX)
    );
}

proptest! {
    #[test]
    fn shares_are_fair(limit in 0u32..1000, demands in proptest::collection::vec(0u32..500, 1..9)) {
        let shares = shares(limit, &demands);
        prop_assert_eq!(shares.iter().sum::<u32>(), limit);
        let equal = limit / demands.len() as u32;
        for (share, demand) in shares.iter().zip(&demands) {
            prop_assert!(*share >= equal.min(*demand));
        }
        // Who gets less than it wants gets no less than anybody else, but for the odd one.
        for (own, demand) in shares.iter().zip(&demands).filter(|(own, demand)| own < demand) {
            prop_assert!(shares.iter().all(|other| *other <= own + 1), "{} {} {:?}", own, demand, shares);
        }
    }

    /// Whatever it is told: within its bounds, and no panic.
    #[test]
    fn the_limit_stays_within_bounds(
        (min, max, initial, tolerance_percent, probe) in any::<(u32, u32, u32, u32, u64)>(),
        steps in proptest::collection::vec(
            (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>()), 0..100
        ),
        near in proptest::collection::vec((0u64..300, 0u64..100, 0u64..1000, 0u32..300), 0..300),
    ) {
        let probe_every = Duration::from_millis(probe);
        let settings = Settings { min, max, initial, tolerance_percent, probe_every };
        let mut gradient = Gradient::new(settings);
        let most = max.clamp(LOWEST, HIGHEST);
        let least = min.clamp(LOWEST, most);
        let mut now = Duration::ZERO;
        for (step, count, millis, most_under_way) in near {
            now += at(step);
            let sample = Sample { count, latency_sum: at(millis), most_under_way };
            let limit = gradient.push(now, sample, count << 57);
            prop_assert!((least..=most).contains(&limit));
        }
        for (now, count, nanos, most_under_way, random) in steps {
            let sample = Sample { count, latency_sum: Duration::from_nanos(nanos), most_under_way };
            let limit = gradient.push(Duration::from_millis(now), sample, random);
            prop_assert!((least..=most).contains(&limit));
            let sample = Sample { latency_sum: Duration::MAX, ..sample };
            let limit = gradient.push(Duration::from_secs(now), sample, random);
            prop_assert!((least..=most).contains(&limit));
        }
        _ = gradient.unloaded();
    }

    /// Every request ends exactly once; no more run than may; nobody waits longer than an interval; a higher priority is
    /// never behind a lower one.
    #[test]
    fn the_gate_is_just(
        limit in 0u32..12,
        steps in proptest::collection::vec((0u8..8, 0usize..4, 0u64..40), 1..400),
    ) {
        let mut gate = Gate::new(limit);
        let slots = limit.max(LOWEST);
        // By ticket: its priority, and since when.
        let mut waiting: BTreeMap<Ticket, (Priority, u64)> = BTreeMap::new();
        let (mut now, mut running) = (0, 0u32);
        let mut by_priority = [0u32; 4];
        for (what, which, step) in steps {
            now += step;
            match what {
                0..=3 => {
                    let priority = ALL[which];
                    let lower_only = by_priority[..=which].iter().all(|count| *count == 0);
                    let ahead = waiting.values().any(|(other, _)| *other <= priority);
                    match gate.arrive(at(now), priority) {
                        Arrival::Run => {
                            prop_assert!(!ahead, "ran past who waited before it");
                            running += 1;
                            by_priority[which] += 1;
                        }
                        Arrival::Wait { ticket, refused } => {
                            prop_assert_eq!(refused, None);
                            prop_assert!(
                                !lower_only || ahead || which == 3,
                                "{:?} waits, though only lower ones run", priority
                            );
                            waiting.insert(ticket, (priority, now));
                        }
                        Arrival::Refused => prop_assert!(false, "there is room to wait"),
                    }
                }
                4 | 5 => {
                    if let Some(at) = (0..4).rev().find(|at| by_priority[*at] > 0) {
                        by_priority[at] -= 1;
                        running -= 1;
                        gate.leave();
                    }
                }
                6 => {
                    let first = waiting.keys().nth(which).copied();
                    prop_assert_eq!(gate.cancel(at(now), first.unwrap_or(Ticket::MAX)), first.is_some());
                    first.and_then(|ticket| waiting.remove(&ticket));
                }
                _ => {}
            }
            while let Some(next) = gate.next(at(now)) {
                match next {
                    Next::Refuse(ticket) => {
                        let (_, since) = waiting.remove(&ticket).unwrap();
                        prop_assert!(now - since >= TARGET.as_millis() as u64);
                    }
                    Next::Run(ticket) => {
                        let (priority, _) = waiting.remove(&ticket).unwrap();
                        prop_assert!(waiting.values().all(|(other, _)| *other >= priority));
                        running += 1;
                        by_priority[ALL.iter().position(|it| *it == priority).unwrap()] += 1;
                    }
                }
            }
            prop_assert_eq!((gate.running(), gate.waiting()), (running, waiting.len()));
            prop_assert!(running <= slots + HEALTH_SLOTS);
            let oldest = waiting.values().map(|(_, since)| now - since).max().unwrap_or(0);
            prop_assert!(oldest < INTERVAL.as_millis() as u64);
            prop_assert!(gate.due().is_none_or(|due| due > at(now)));
            prop_assert_eq!(gate.due().is_none(), waiting.is_empty());
        }
    }

    /// A flood of lower ones takes nothing from a steady stream of higher ones.
    #[test]
    fn a_flood_does_not_starve_who_matters_more(limit in 3u32..40, lower in 2usize..4, seed: u64) {
        let mut gate = Gate::new(limit);
        let mut random = generator(seed);
        let mut critical = 0;
        // (when it ends, whether it was critical)
        let mut ends: Vec<(u64, bool)> = Vec::new();
        for now in 0..3_000 {
            let ended = |end: &(u64, bool)| end.0 <= now;
            let count = ends.iter().filter(|end| ended(end)).count();
            critical -= ends.iter().filter(|end| ended(end) && end.1).count();
            ends.retain(|end| !ended(end));
            (0..count).for_each(|_| gate.leave());
            while let Some(next) = gate.next(at(now)) {
                if let Next::Run(_) = next {
                    ends.push((now + 50 + random() % 500, false));
                }
            }
            for _ in 0..5 {
                if gate.arrive(at(now), ALL[lower]) == Arrival::Run {
                    ends.push((now + 50 + random() % 500, false));
                }
            }
            // One at a time fits into what is kept for them, always.
            if critical == 0 {
                prop_assert_eq!(gate.arrive(at(now), Priority::Critical), Arrival::Run);
                critical += 1;
                ends.push((now + 1 + random() % 20, true));
            }
        }
    }

    #[test]
    fn no_clock_makes_the_gate_panic(
        steps in proptest::collection::vec((any::<u64>(), 0u8..6, any::<u32>()), 0..200),
    ) {
        let mut gate = Gate::new(5);
        for (now, what, number) in steps {
            let now = Duration::from_millis(now);
            match what {
                0..=2 => _ = gate.arrive(now, ALL[number as usize % 4]),
                3 => gate.leave(),
                4 => gate.set_limit(number),
                _ => _ = gate.cancel(Duration::MAX, number.into()),
            }
            while gate.next(now).is_some() {}
            _ = gate.due();
        }
    }
}
