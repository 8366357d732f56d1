use proptest::prelude::*;

use super::*;

fn id(limit: &str) -> LimitId {
    LimitId {
        namespace: "shop".into(),
        service: "orders".into(),
        policy: "orders".into(),
        limit: limit.into(),
    }
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn ask(ledger: &mut Ledger, proxy: &str, demand: u32, now: u64) -> u32 {
    let wish = Part { key: 0, millionths: demand };
    let grant = ledger.lease(&id("all"), &proxy.into(), &[wish], at(now)).unwrap();
    assert_eq!(grant.parts.len(), 1);
    grant.parts[0].millionths
}

#[test]
fn shares_follow_demand_within_two_rounds() {
    let mut ledger = Ledger::default();
    assert_eq!(ask(&mut ledger, "a", 3_000_000, 0), WHOLE, "alone");
    assert_eq!(
        ask(&mut ledger, "b", 3_000_000, 100),
        0,
        "nothing is left until the other asks again"
    );
    assert_eq!(ask(&mut ledger, "a", 3_000_000, 250), 500_000);
    assert_eq!(ask(&mut ledger, "b", 3_000_000, 350), 500_000);
    // The demand goes to one of them.
    let less = ask(&mut ledger, "a", 0, 500);
    assert!(less <= 25_000, "{less}");
    assert_eq!(ask(&mut ledger, "b", 3_000_000, 600), WHOLE - less);
}

#[test]
fn who_is_gone_gives_back() {
    let mut ledger = Ledger::default();
    ask(&mut ledger, "a", 3_000_000, 0);
    ask(&mut ledger, "b", 3_000_000, 1_900);
    assert_eq!(ask(&mut ledger, "b", 3_000_000, 1_999), 0, "it may still use it");
    assert_eq!(ask(&mut ledger, "b", 3_000_000, 2_000), WHOLE);
    assert_eq!(ledger.len(), 1);
    ledger.lease(&id("other"), &"c".into(), &[], at(60_000)).unwrap();
    assert!(ledger.is_empty() && ledger.pools.len() == 1);
}

#[test]
fn a_key_is_shared_among_those_who_ask_for_it() {
    let mut ledger = Ledger::default();
    let mut ask = |proxy: &str, keys: &[u64]| {
        let wishes: Vec<_> =
            keys.iter().map(|key| Part { key: *key, millionths: 900_000 }).collect();
        let grant = ledger.lease(&id("keyed"), &proxy.into(), &wishes, at(1)).unwrap();
        let parts = grant.parts.iter().map(|part| (part.key, part.millionths)).collect::<Vec<_>>();
        (grant.proxies, parts)
    };
    assert_eq!(ask("a", &[1, 2]), (1, vec![(1, WHOLE), (2, WHOLE)]));
    assert_eq!(ask("b", &[2, 3]), (2, vec![(2, 0), (3, WHOLE)]));
    // It lets go of one and shares the other.
    assert_eq!(ask("a", &[2]), (2, vec![(2, 500_000)]));
    assert_eq!(ask("b", &[1, 2]), (2, vec![(1, WHOLE), (2, 500_000)]));
}

#[test]
fn everything_is_bounded() {
    let id = |limit: &str| {
        // As many namespaces as it takes to fill everything.
        let of = limit.parse::<usize>().map_or(0, |number| number % OF_NAMESPACE);
        LimitId { namespace: of.to_string(), ..id(limit) }
    };
    let mut ledger = Ledger::default();
    let wishes: Vec<_> = (0..1_000).map(|key| Part { key, millionths: 1 }).collect();
    let grant = ledger.lease(&id("all"), &"a".into(), &wishes, at(0)).unwrap();
    assert_eq!(grant.parts.len(), MAX_KEYS);
    let few = &wishes[..MAX_KEYS];
    for proxy in 0..MAX_SHARES / MAX_KEYS + 50 {
        ledger.lease(&id(&format!("{}", proxy / 50)), &format!("{proxy}").into(), few, at(0));
    }
    assert_eq!(ledger.len(), MAX_SHARES);
    // Who has one keeps it; who is new gets none of its own, and the number to divide by all the same.
    let grant = ledger.lease(&id("all"), &"a".into(), few, at(1)).unwrap();
    assert_eq!(grant.parts.len(), MAX_KEYS);
    let grant = ledger.lease(&id("all"), &"late".into(), few, at(1)).unwrap();
    assert_eq!((grant.parts.len(), grant.proxies), (0, 2));
    let mut ledger = Ledger::default();
    for number in 0..MAX_LIMITS {
        assert!(ledger.lease(&id(&number.to_string()), &"a".into(), &[], at(0)).is_some());
    }
    assert!(ledger.lease(&id("one more"), &"a".into(), &[], at(0)).is_none());
    assert!(ledger.lease(&id("7"), &"a".into(), &[], at(0)).is_some());
}

#[test]
fn a_namespace_does_not_take_the_room_of_others() {
    let other = LimitId { namespace: "other".into(), ..id("all") };
    let mut ledger = Ledger::default();
    for number in 0..MAX_LIMITS / OF_NAMESPACE {
        assert!(ledger.lease(&id(&number.to_string()), &"a".into(), &[], at(0)).is_some());
    }
    assert!(ledger.lease(&id("one more"), &"a".into(), &[], at(0)).is_none());
    assert!(ledger.lease(&other, &"a".into(), &[], at(0)).is_some());
    // Names of proxies are as cheap as names of limits.
    let mut ledger = Ledger::default();
    for number in 0..MAX_MEMBERS / OF_NAMESPACE {
        let name = number.to_string().into();
        let limit = id(&(number % 500).to_string());
        assert!(ledger.lease(&limit, &name, &[], at(0)).is_some(), "{number}");
    }
    assert!(ledger.lease(&id("7"), &"late".into(), &[], at(0)).is_none());
    assert!(ledger.lease(&id("7"), &"7".into(), &[], at(1)).is_some(), "it is known");
    assert!(ledger.lease(&other, &"late".into(), &[], at(1)).is_some());
    // When they have gone there is room again.
    let later = at(24 * 3_600_000);
    assert!(ledger.lease(&id("all"), &"late".into(), &[], later).is_some());
    assert_eq!(ledger.all, Used { limits: 1, members: 1, shares: 0 });
}

#[test]
fn many_proxies_ask_less_often_and_keep_longer() {
    let mut ledger = Ledger::default();
    let mut last = None;
    for proxy in 0..1_000 {
        let wish = [Part { key: 0, millionths: 10 }];
        last = ledger.lease(&id("all"), &format!("{proxy}").into(), &wish, at(0));
    }
    let grant = last.unwrap();
    let pace = grant.ask_again_after;
    assert!((at(2_400)..=at(2_500)).contains(&pace), "{pace:?}");
    assert_eq!((grant.valid_for, grant.proxies), (pace * PATIENCE, 1_000));
}

proptest! {
    /// Whoever asks whenever for whatever, and whoever goes: what is in force is never more than the limit.
    #[test]
    fn shares_in_force_are_never_more_than_the_whole(
        steps in proptest::collection::vec((0usize..6, 0u32..3_000_000, 0u64..3, 0u64..900), 1..200),
    ) {
        let mut ledger = Ledger::default();
        // By proxy and key: what was granted last, and until when that holds.
        let mut granted: HashMap<(usize, u64), (u32, Duration)> = HashMap::new();
        let mut now = 0;
        for (proxy, demand, key, step) in steps {
            now += step;
            let wish = Part { key, millionths: demand };
            let name = format!("{proxy}").into();
            let grant = ledger.lease(&id("all"), &name, &[wish], at(now)).unwrap();
            granted.retain(|(holder, _), (_, until)| *holder != proxy && at(now) < *until);
            granted.insert((proxy, key), (grant.parts[0].millionths, at(now) + grant.valid_for));
            for key in 0..3 {
                let of_key = granted.iter().filter(|((_, other), _)| *other == key);
                let all: u64 = of_key.map(|(_, (share, _))| u64::from(*share)).sum();
                prop_assert!(all <= u64::from(WHOLE), "{}", all);
            }
            let holders: HashSet<usize> = granted.keys().map(|(holder, _)| *holder).collect();
            prop_assert_eq!(usize::try_from(grant.proxies).unwrap(), holders.len());
        }
    }
}
