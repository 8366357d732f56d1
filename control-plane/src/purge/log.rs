//! Orders in the order in which they were given, as far back as they are kept.

use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Orders that are kept for those who are away: with the longest paths these are 4 MiB.
pub const MAX_ORDERS: usize = 1024;
/// How long they are kept. Whoever is away for longer has little left that is good, and starts anew.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// Responses that are to be void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// `shop/products`, with all of its ports, or `shop/products:80`.
    pub service: String,
    /// Which of its responses.
    pub what: What,
}

/// Which responses of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Every one.
    All,
    /// Those for a path with its query.
    Path(String),
    /// Those whose path with query begins so.
    Prefix(String),
    /// Those that the origin has given this tag.
    Tag(String),
}

/// Numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Log {
    head: u64,
    /// The last ones, with when they were given.
    kept: VecDeque<(Duration, Arc<Purge>)>,
}

/// What follows a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing yet.
    Nothing,
    /// This order, with its number.
    Order(u64, Arc<Purge>),
    /// What it was is not known any more: to forget everything brings one to here.
    Everything(u64),
}

impl Log {
    /// The number of the last order; 0 before the first.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Adds an order and says which number it has.
    pub(super) fn add(&mut self, purge: Purge, now: Duration) -> u64 {
        while let Some((given, _)) = self.kept.front() {
            if self.kept.len() < MAX_ORDERS && now.saturating_sub(*given) <= MAX_AGE {
                break;
            }
            self.kept.pop_front();
        }
        self.head += 1;
        self.kept.push_back((now, Arc::new(purge)));
        self.head
    }

    /// What comes after the order `position`; after nothing at all comes everything.
    pub(super) fn after(&self, position: Option<u64>) -> Next {
        let Some(missed) = position.and_then(|position| self.head.checked_sub(position)) else {
            return Next::Everything(self.head);
        };
        if missed == 0 {
            return Next::Nothing;
        }
        let at =
            usize::try_from(missed).ok().and_then(|missed| self.kept.len().checked_sub(missed));
        match at.and_then(|at| self.kept.get(at)) {
            Some((_, purge)) => Next::Order(self.head - missed + 1, purge.clone()),
            None => Next::Everything(self.head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(tag: usize) -> Purge {
        Purge { service: "shop/a".into(), what: What::Tag(tag.to_string()) }
    }

    fn log(orders: usize) -> Log {
        let mut log = Log::default();
        for number in 1..=orders {
            assert_eq!(log.add(purge(number), Duration::ZERO), number as u64);
        }
        log
    }

    /// All that follows, as a proxy would get it.
    fn follow(log: &Log, mut position: Option<u64>) -> Vec<Option<u64>> {
        let mut told = Vec::new();
        loop {
            match log.after(position) {
                Next::Nothing => return told,
                Next::Order(sequence, order) => {
                    assert_eq!(*order, purge(sequence as usize));
                    (position, _) = (Some(sequence), told.push(Some(sequence)));
                }
                Next::Everything(sequence) => (position, _) = (Some(sequence), told.push(None)),
            }
        }
    }

    #[test]
    fn whoever_comes_back_gets_what_it_missed() {
        let log = log(3);
        assert_eq!(follow(&log, Some(0)), [Some(1), Some(2), Some(3)]);
        assert_eq!(follow(&log, Some(2)), [Some(3)]);
        assert_eq!(follow(&log, Some(3)), []);
        assert_eq!(follow(&log, None), [None], "of whom nothing is known");
        assert_eq!(follow(&log, Some(4)), [None], "from a future that never was");
        assert_eq!(follow(&Log::default(), None), [None]);
        assert_eq!(follow(&Log::default(), Some(0)), []);
    }

    #[test]
    fn what_is_not_kept_any_more_is_everything() {
        let log = log(MAX_ORDERS + 2);
        assert_eq!(log.kept.len(), MAX_ORDERS);
        assert_eq!(follow(&log, Some(2)).len(), MAX_ORDERS);
        assert_eq!(follow(&log, Some(2)).first(), Some(&Some(3)));
        assert_eq!(follow(&log, Some(1)), [None]);
        assert_eq!(follow(&log, Some(0)), [None]);
    }

    #[test]
    fn what_is_old_is_kept_no_longer() {
        let mut log = log(2);
        log.add(purge(3), MAX_AGE);
        assert_eq!(follow(&log, Some(0)), [Some(1), Some(2), Some(3)]);
        log.add(purge(4), MAX_AGE + Duration::from_secs(1));
        assert_eq!(follow(&log, Some(2)), [Some(3), Some(4)]);
        assert_eq!(follow(&log, Some(1)), [None]);
    }
}
