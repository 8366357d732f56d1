use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(10);

fn key(name: &str) -> Key {
    Key::new("leno.dev", "workloads", "shop", name)
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn a_lease_lapses_at_its_end_and_is_told_once() {
    let (mut leases, start) = (Leases::default(), Instant::now());
    leases.grant(&key("a"), TTL, 1, start);
    leases.grant(&key("b"), TTL * 2, 2, start);
    assert_eq!(leases.next_end(), Some(start + TTL));
    assert!(leases.lapse(start + TTL - Duration::from_nanos(1)).is_empty());
    assert_eq!(leases.lapse(start + TTL), [key("a")]);
    assert!(leases.lapse(start + TTL).is_empty());
    assert_eq!(leases.next_end(), Some(start + TTL * 2));
    assert_eq!(leases.len(), 1);
}

#[test]
fn renewal_extends_by_the_full_length() {
    let (mut leases, start) = (Leases::default(), Instant::now());
    leases.grant(&key("a"), TTL, 1, start);
    assert!(leases.renew(&key("a"), start + seconds(9)));
    assert!(leases.lapse(start + seconds(18)).is_empty());
    assert_eq!(leases.lapse(start + seconds(19)), [key("a")]);
    assert!(!leases.renew(&key("never"), start));
}

#[test]
fn what_has_lapsed_is_not_renewed_but_may_be_granted_anew() {
    let (mut leases, start) = (Leases::default(), Instant::now());
    leases.grant(&key("a"), TTL, 4, start);
    assert!(!leases.renew(&key("a"), start + TTL), "too late even before anyone looked");
    leases.lapse(start + TTL);
    assert!(leases.is_lapsing(&key("a")));
    assert_eq!(leases.lapsing_content(&key("a")), Some(4));
    assert!(!leases.renew(&key("a"), start + TTL));
    leases.grant(&key("a"), TTL, 3, start + TTL);
    assert!(!leases.is_lapsing(&key("a")));
    leases.lapse(start + TTL * 2);
    assert_eq!(leases.lapsing_content(&key("a")), Some(4), "a late report takes nothing back");
    leases.release(&key("a"));
    assert!(!leases.is_lapsing(&key("a")));
}

#[test]
fn a_stall_is_not_held_against_anybody() {
    let (mut leases, start) = (Leases::default(), Instant::now());
    let mut heartbeat = Heartbeat::new(start);
    leases.grant(&key("a"), TTL, 1, start);
    leases.grant(&key("gone"), TTL, 1, start - TTL * 2);
    leases.lapse(start);
    assert_eq!(heartbeat.beat(start + seconds(1)), Duration::ZERO);
    let stall = heartbeat.beat(start + seconds(31));
    assert_eq!(stall, seconds(30));
    leases.extend_all(stall);
    assert!(leases.lapse(start + seconds(39)).is_empty());
    assert_eq!(leases.lapse(start + seconds(40)), [key("a")]);
    assert!(leases.is_lapsing(&key("gone")), "what had lapsed before stays so");
    assert_eq!(heartbeat.next(), start + seconds(31) + Heartbeat::EVERY);
}

proptest! {
    /// At any moment exactly those are held whose last grant or renewal is less than a lease ago.
    #[test]
    fn agrees_with_a_plain_list(steps in prop::collection::vec((0u8..4, 0u8..4, 0u64..15), 1..60)) {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let mut ends: HashMap<u8, u64> = HashMap::new();
        let mut clock = 0;
        for (action, who, wait) in steps {
            clock += wait;
            let now = start + seconds(clock);
            let name = key(&who.to_string());
            match action {
                0 => {
                    leases.grant(&name, TTL, 1, now);
                    ends.insert(who, clock + 10);
                }
                1 => {
                    let held = ends.get(&who).is_some_and(|end| *end > clock);
                    prop_assert_eq!(leases.renew(&name, now), held);
                    if held {
                        ends.insert(who, clock + 10);
                    }
                }
                2 => {
                    leases.release(&name);
                    ends.remove(&who);
                }
                _ => {
                    let mut lapsed = leases.lapse(now);
                    lapsed.sort();
                    let mut expected: Vec<_> =
                        ends.iter().filter(|(_, end)| **end <= clock).map(|(who, _)| *who).collect();
                    expected.sort_unstable();
                    ends.retain(|_, end| *end > clock);
                    prop_assert_eq!(lapsed, expected.iter().map(|n| key(&n.to_string())).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(leases.len(), ends.len());
            let next = ends.values().min().map(|end| start + seconds(*end));
            prop_assert_eq!(leases.next_end(), next);
        }
    }
}
