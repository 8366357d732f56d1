//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a small queue that most objects
//! only pass through, a main queue with second chances, and a queue of the names that were thrown out of the small one.

use super::Policy;
use super::linked::List;

/// The small queue's part of all places, in per cent.
const SMALL: usize = 10;
/// Hits that are remembered for each object.
const MOST_HITS: u8 = 3;
/// With more than so many an object goes from the small queue to the main one.
const ONCE: u8 = 1;

pub struct S3Fifo {
    room: usize,
    room_small: usize,
    small: List,
    main: List,
    ghosts: List,
    hits: Vec<u8>,
}

impl S3Fifo {
    pub fn new(objects: usize, room: usize) -> Self {
        let list = || List::new(objects);
        S3Fifo {
            room,
            room_small: (room * SMALL / 100).max(1),
            small: list(),
            main: list(),
            ghosts: list(),
            hits: vec![0; objects],
        }
    }

    fn hits(&self, object: usize) -> u8 {
        self.hits.get(object).copied().unwrap_or(0)
    }

    fn set_hits(&mut self, object: usize, hits: u8) {
        if let Some(known) = self.hits.get_mut(object) {
            *known = hits.min(MOST_HITS);
        }
    }

    fn make_room(&mut self) {
        while self.small.len() + self.main.len() >= self.room {
            if self.small.len() >= self.room_small || self.main.len() == 0 {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
    }

    fn evict_small(&mut self) {
        while let Some(object) = self.small.pop_back() {
            if self.hits(object) > ONCE {
                self.set_hits(object, 0);
                self.main.push_front(object);
                continue;
            }
            if self.ghosts.len() >= self.room - self.room_small {
                self.ghosts.pop_back();
            }
            self.ghosts.push_front(object);
            return;
        }
    }

    fn evict_main(&mut self) {
        while let Some(object) = self.main.last() {
            let hits = self.hits(object);
            if hits == 0 {
                self.main.remove(object);
                return;
            }
            self.set_hits(object, hits - 1);
            self.main.to_front(object);
        }
    }
}

impl Policy for S3Fifo {
    fn ask(&mut self, object: usize) -> bool {
        if self.small.contains(object) || self.main.contains(object) {
            self.set_hits(object, self.hits(object) + 1);
            return true;
        }
        self.make_room();
        self.set_hits(object, 0);
        if self.ghosts.contains(object) {
            self.ghosts.remove(object);
            self.main.push_front(object);
        } else {
            self.small.push_front(object);
        }
        false
    }
}
