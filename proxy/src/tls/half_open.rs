//! Handshakes under way on the accepting side: how many there may be, and who gives way when there are too many. Time is
//! an argument.
//!
//! Half-open handshakes cost whoever opens them nothing. So when all places are taken, the address that holds most
//! of them loses its oldest one to anybody who holds fewer: one caller, however many connections it opens, keeps nobody
//! else out. Among callers that hold equally many a place is taken only from a handshake which is slow.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// Handshakes under way in one worker; each holds some 30 KiB. A fleet that comes back all at once is served a few
/// hundred at a time.
const MOST_AT_ONCE: usize = 512;
/// A handshake is two round trips; whoever is not done after this may have to give way. This way at most as many a
/// second are given up as have places, an eighth of what a core can do: work that is given up never starves the rest.
const SLOW: Duration = Duration::from_secs(1);

/// The handshakes of one worker.
#[derive(Clone, Debug, Default)]
pub struct HalfOpen(Rc<RefCell<Places>>);

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// By number, so oldest first.
    taken: BTreeMap<u64, Taken>,
    by_address: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Taken {
    address: IpAddr,
    since: Instant,
    /// Dropped when the handshake has to give way.
    #[expect(dead_code, reason = "its end is the message")]
    keep: oneshot::Sender<()>,
}

/// A handshake under way, until dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    of: HalfOpen,
    kept: oneshot::Receiver<()>,
}

impl HalfOpen {
    /// A place for a handshake with `address`; `None` when it has to wait for others.
    pub fn begin(&self, address: IpAddr, now: Instant) -> Option<Place> {
        let address = network(address);
        let mut places = self.0.borrow_mut();
        if places.taken.len() >= MOST_AT_ONCE {
            let number = places.who_gives_way(address, now)?;
            places.remove(number);
        }
        let (keep, kept) = oneshot::channel();
        let number = places.next;
        places.next += 1;
        places.taken.insert(number, Taken { address, since: now, keep });
        *places.by_address.entry(address).or_default() += 1;
        Some(Place { number, of: self.clone(), kept })
    }
}

impl Places {
    fn who_gives_way(&self, newcomer: IpAddr, now: Instant) -> Option<u64> {
        let held = self.by_address.get(&newcomer).copied().unwrap_or_default();
        let (greediest, most) = self.by_address.iter().max_by_key(|(_, count)| **count)?;
        // It would still hold as many as the newcomer then does.
        if *most > held + 1 {
            let oldest = self.taken.iter().find(|(_, taken)| taken.address == *greediest);
            return oldest.map(|(number, _)| *number);
        }
        let (number, oldest) = self.taken.first_key_value()?;
        (now.saturating_duration_since(oldest.since) >= SLOW).then_some(*number)
    }

    fn remove(&mut self, number: u64) {
        let Some(taken) = self.taken.remove(&number) else { return };
        if let Some(count) = self.by_address.get_mut(&taken.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&taken.address);
            }
        }
    }
}

impl Place {
    /// Waits until somebody else needs the place.
    pub async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.kept).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.0.borrow_mut().remove(self.number);
    }
}

/// Whoever has an IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_lost(place: &mut Place) -> bool {
        !matches!(place.kept.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    fn fill(half_open: &HalfOpen, from: &str, now: Instant) -> Vec<Place> {
        (0..MOST_AT_ONCE).map(|_| half_open.begin(address(from), now).unwrap()).collect()
    }

    #[test]
    fn handshakes_at_once_are_bounded() {
        let (half_open, now) = (HalfOpen::default(), Instant::now());
        let mut held = fill(&half_open, "10.0.0.1", now);
        assert!(half_open.begin(address("10.0.0.1"), now).is_none());
        held.pop();
        assert!(half_open.begin(address("10.0.0.1"), now).is_some());
        drop(held);
        let places = half_open.0.borrow();
        assert!(places.taken.is_empty() && places.by_address.is_empty());
    }

    #[test]
    fn whoever_holds_most_gives_way_to_others() {
        let (half_open, now) = (HalfOpen::default(), Instant::now());
        let mut held = fill(&half_open, "10.0.0.1", now);
        let mut others = Vec::new();
        for at in 0..MOST_AT_ONCE / 2 {
            others.push(half_open.begin(address("10.0.0.2"), now).unwrap());
            assert!(is_lost(&mut held[at]) && !is_lost(&mut held[at + 1]));
        }
        assert_eq!(half_open.0.borrow().taken.len(), MOST_AT_ONCE);
        assert!(half_open.begin(address("10.0.0.2"), now).is_none(), "as many as the other");
        assert!(half_open.begin(address("10.0.0.3"), now).is_some());
        assert!(others.iter_mut().map(is_lost).filter(|lost| *lost).count() <= 1);
    }

    #[test]
    fn among_equals_the_slow_give_way() {
        let (half_open, now) = (HalfOpen::default(), Instant::now());
        let mut held = fill(&half_open, "10.0.0.1", now);
        assert!(half_open.begin(address("10.0.0.1"), now + SLOW / 2).is_none());
        let late = half_open.begin(address("10.0.0.1"), now + SLOW);
        assert!(late.is_some() && is_lost(&mut held[0]) && !is_lost(&mut held[1]));
    }

    #[test]
    fn a_fleet_that_comes_back_is_served_in_the_order_of_its_coming() {
        let (half_open, now) = (HalfOpen::default(), Instant::now());
        let fleet =
            (0..MOST_AT_ONCE).map(|at| IpAddr::from(u32::try_from(at).unwrap().to_be_bytes()));
        let mut held: Vec<_> = fleet.map(|from| half_open.begin(from, now).unwrap()).collect();
        assert!(half_open.begin(address("10.0.0.1"), now).is_none());
        assert!(!held.iter_mut().any(is_lost));
    }

    #[test]
    fn a_network_is_one_address() {
        assert_eq!(network(address("2001:db8::1:2:3:4")), address("2001:db8::"));
        assert_eq!(network(address("::ffff:10.0.0.1")), address("10.0.0.1"));
    }
}
