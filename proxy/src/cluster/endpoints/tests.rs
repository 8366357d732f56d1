use std::{net::SocketAddr, time::Duration};

use leno_api::model::traffic_policy::HashKey;

use super::*;
use crate::{
    cluster::{Calling, Security, balance::tests::generator},
    telemetry::scope::{Party, Scope, ScopeLabels},
};

const EWMA: Balancer = Balancer::PeakEwma { decay: Duration::from_secs(10) };
const ALL: [Balancer; 4] = [EWMA, Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random];

fn endpoints(count: u16) -> Endpoints {
    let endpoint = |port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let scope = Scope::new(ScopeLabels::default());
        Endpoint::own("a".into(), address, scope)
    };
    (1..=count).map(endpoint).collect::<Vec<_>>().into()
}

fn wish<'a>(balancer: &'a Balancer, tried: &'a [u64]) -> Wish<'a> {
    Wish { balancer, tried, hash: None, bound: 1.25, under_way: &|| 0, breakers: false }
}

fn counts(endpoints: &Endpoints, balancer: &Balancer, tried: &[u64]) -> Vec<u32> {
    let (mut counts, turn) = (vec![0; endpoints.len()], AtomicU64::new(0));
    let mut random = generator(3);
    for _ in 0..3_000 {
        let place = endpoints.pick(&wish(balancer, tried), |_| 1.0, &turn, &mut random).unwrap();
        counts[place] += 1;
    }
    counts
}

#[test]
fn whatever_the_balancer_the_ejected_get_nothing_and_the_others_the_same() {
    let endpoints = endpoints(4);
    endpoints[1].vitals().decide(Factor::NONE, None);
    for balancer in &ALL {
        let counts = counts(&endpoints, balancer, &[]);
        let fair = |place: usize| (850..1150).contains(&counts[place]);
        assert!(counts[1] == 0 && fair(0) && fair(2) && fair(3), "{balancer:?}: {counts:?}");
    }
}

#[test]
fn who_comes_back_gets_a_part_of_its_share() {
    let endpoints = endpoints(3);
    endpoints[2].vitals().decide(Factor(26), None);
    for balancer in &ALL {
        let counts = counts(&endpoints, balancer, &[]);
        assert!((50..300).contains(&counts[2]), "{balancer:?}: {counts:?}");
    }
}

#[test]
fn who_was_tried_is_asked_again_only_if_there_is_nobody_else() {
    let endpoints = endpoints(3);
    let ids: Vec<u64> = endpoints.iter().map(|endpoint| endpoint.id).collect();
    endpoints[0].vitals().decide(Factor::NONE, None);
    for balancer in &ALL {
        assert_eq!(counts(&endpoints, balancer, &ids[1..2]), [0, 0, 3_000], "{balancer:?}");
        let again = counts(&endpoints, balancer, &ids[1..]);
        assert!(again[0] == 0 && again[1] > 1_000 && again[2] > 1_000, "{balancer:?}");
    }
    for endpoint in endpoints.iter() {
        endpoint.vitals().decide(Factor::NONE, None);
    }
    for balancer in &ALL {
        let mut random = generator(3);
        let turn = AtomicU64::new(0);
        assert_eq!(endpoints.pick(&wish(balancer, &ids), |_| 1.0, &turn, &mut random), None);
    }
}

const HASHING: [&str; 2] = ["ring", "maglev"];

fn hashing(name: &str) -> Settings {
    let keys = vec![HashKey::SourceIp];
    let balancer = match name {
        "ring" => Balancer::RingHash { keys, minimum_size: 1024 },
        _ => Balancer::Maglev { keys },
    };
    Settings { balancer, ..Settings::default() }
}

/// Workloads by name, zone and weight.
fn workloads(list: &[(&str, &str, u32)]) -> Vec<Arc<Endpoint>> {
    let endpoint = |(port, (name, zone, weight)): (u16, &(&str, &str, u32))| {
        let spec = serde_json::json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "services": ["orders"], "address": "127.0.0.1", "ports": {"http": port},
                "zone": zone, "weight": weight,
            },
        });
        let resource = leno_api::Resource::from_json(spec).unwrap();
        let leno_api::model::Model::Workload(workload) = resource.model else { unreachable!() };
        let party = Party::default();
        let service = ("shop".into(), "orders".into());
        let calling = Arc::new(Calling { source: party, service, id: None });
        Endpoint::new(workload, calling, port, false, Security::Plain, None)
    };
    (1..).zip(list).map(endpoint).collect()
}

/// Who is picked for each of 500 requests that are no more under way when the next comes.
fn owners(endpoints: &Endpoints, settings: &Settings, tried: &[u64]) -> Vec<usize> {
    let (mut random, turn) = (generator(9), AtomicU64::new(0));
    let mut owner = |hash| {
        let wish = Wish { hash: Some(hash), ..wish(&settings.balancer, tried) };
        endpoints.pick(&wish, |_| 1.0, &turn, &mut random).unwrap()
    };
    let mut hashes = generator(10);
    (0..500).map(|_| owner(hashes())).collect()
}

#[test]
fn who_hashes_keeps_its_endpoint_past_those_that_are_ejected_or_tried() {
    for name in HASHING {
        let settings = hashing(name);
        let list = workloads(&[("a", "x", 1), ("b", "x", 1), ("c", "x", 1), ("d", "x", 1)]);
        let endpoints = Endpoints::new(list, &settings, Some("x"), None);
        let all = owners(&endpoints, &settings, &[]);
        assert_eq!(all, owners(&endpoints, &settings, &[]));
        assert!((0..4).all(|place| all.iter().filter(|owner| **owner == place).count() > 60));
        endpoints[1].vitals().decide(Factor::NONE, None);
        let rest = owners(&endpoints, &settings, &[]);
        for (before, after) in all.iter().zip(&rest) {
            assert!(*after != 1 && (*before == 1 || before == after), "{name}");
        }
        let tried = owners(&endpoints, &settings, &[endpoints[0].id]);
        for (before, after) in rest.iter().zip(&tried) {
            assert!(*after > 1 && (*before == 0 || before == after), "{name}");
        }
    }
}

#[test]
fn what_is_busy_beyond_its_bound_spills_also_where_there_are_many() {
    for (name, count) in HASHING.into_iter().flat_map(|name| [(name, 4), (name, 70)]) {
        let settings = hashing(name);
        let names: Vec<String> = (0..count).map(|number| format!("w-{number}")).collect();
        let list: Vec<_> = names.iter().map(|name| (&**name, "x", 1)).collect();
        let endpoints = Endpoints::new(workloads(&list), &settings, None, None);
        let (mut random, turn, active) = (generator(9), AtomicU64::new(0), AtomicU64::new(0));
        for _ in 0..count * 16 {
            let under_way = || active.load(Ordering::Relaxed);
            let wish =
                Wish { hash: Some(7), under_way: &under_way, ..wish(&settings.balancer, &[]) };
            let place = endpoints.pick(&wish, |_| 1.0, &turn, &mut random).unwrap();
            assert!(endpoints[place].vitals().tally.begin());
            active.fetch_add(1, Ordering::Relaxed);
        }
        let most = endpoints.iter().map(|endpoint| endpoint.active()).max();
        assert!(most == Some(20), "1.25 times 16, {name} of {count}: {most:?}");
    }
}

#[test]
fn tables_are_taken_over_while_they_are_right() {
    for name in HASHING {
        let settings = hashing(name);
        let build = |list: &[(&str, &str, u32)], settings: &Settings, old: Option<&Endpoints>| {
            Endpoints::new(workloads(list), settings, None, old)
        };
        let first = build(&[("a", "x", 1), ("b", "x", 2)], &settings, None);
        let is_kept = |next: &Endpoints| match (&first.table, &next.table) {
            (Some(first), Some(next)) => Arc::ptr_eq(first, next),
            _ => false,
        };
        let same = [("a", "x", 1), ("b", "y", 2)];
        assert!(is_kept(&build(&same, &settings, Some(&first))), "{name}");
        assert!(!is_kept(&build(&same, &settings, None)));
        assert!(!is_kept(&build(&same[..1], &settings, Some(&first))));
        assert!(!is_kept(&build(&[("a", "x", 2), ("b", "x", 2)], &settings, Some(&first))));
        assert!(!is_kept(&build(&[("a", "x", 1), ("c", "x", 2)], &settings, Some(&first))));
        let other = hashing(if name == "ring" { "maglev" } else { "ring" });
        let other = build(&same, &other, Some(&first));
        assert!(other.table.is_some() && !is_kept(&other));
        assert!(build(&same, &Settings::default(), Some(&first)).table.is_none());
    }
}

#[test]
fn the_own_zone_goes_first_as_far_as_its_endpoints_are_well() {
    for balancer in ALL {
        let settings = Settings { balancer: balancer.clone(), ..Settings::default() };
        let list = [("a", "x", 1), ("b", "y", 1), ("c", "x", 1), ("d", "z", 1), ("e", "y", 1)];
        let endpoints = Endpoints::new(workloads(&list), &settings, Some("x"), None);
        let near = counts(&endpoints, &balancer, &[]);
        assert!(near[0] > 1_300 && near[2] > 1_300 && near[0] + near[2] == 3_000, "{near:?}");
        // Half of it: 50 of 70 stay.
        endpoints[2].vitals().decide(Factor::NONE, None);
        endpoints.reweigh();
        let spilt = counts(&endpoints, &balancer, &[]);
        let local = endpoints.local_share().unwrap() * 3_000.0;
        assert!(spilt[2] == 0 && (f64::from(spilt[0]) - local).abs() < 150.0, "{spilt:?}");
        let elsewhere = spilt[1] + spilt[4];
        assert!(local < 2_200.0 && elsewhere > 600, "to where there is room: {spilt:?}");
        // Tried once, it is not asked again while there are others.
        assert_eq!(counts(&endpoints, &balancer, &[endpoints[0].id])[0], 0);
        endpoints[0].vitals().decide(Factor::NONE, None);
        endpoints.reweigh();
        let away = counts(&endpoints, &balancer, &[]);
        assert!(away[0] == 0 && away[2] == 0 && endpoints.local_share() == Some(0.0), "{away:?}");
    }
}

#[test]
fn zones_count_only_where_there_are_some_and_they_are_wanted() {
    let list = [("a", "x", 1), ("b", "y", 1)];
    let share = |list: &[(&str, &str, u32)], settings: &Settings, zone| {
        Endpoints::new(workloads(list), settings, zone, None).local_share()
    };
    let settings = Settings::default();
    assert_eq!(share(&list, &settings, Some("x")), Some(1.0));
    assert_eq!(share(&list, &settings, Some("z")), None);
    assert_eq!(share(&list, &settings, None), None);
    assert_eq!(share(&list[..1], &settings, Some("x")), None);
    assert_eq!(share(&list, &hashing("ring"), Some("x")), None);
    let mut off = Settings::default();
    off.zones.prefer = false;
    assert_eq!(share(&list, &off, Some("x")), None);
}

#[test]
fn nobody_is_made_to_remember_anything_by_being_looked_at() {
    let endpoints = endpoints(3);
    for balancer in &ALL {
        counts(&endpoints, balancer, &[]);
    }
    assert!(endpoints.iter().all(|endpoint| endpoint.known_vitals().is_none()));
}
