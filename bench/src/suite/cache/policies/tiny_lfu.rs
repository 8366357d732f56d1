//! W-TinyLFU (Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy", 2017): a small window
//! that all objects enter, and a main part that lets one in only if it was asked for more often than the one that would
//! make room. How often is counted in a sketch, which forgets half of it again and again.

use super::Policy;
use super::linked::List;

/// Parts of all places, in per cent: the window, and of the rest what is protected.
const WINDOW: usize = 1;
const PROTECTED: usize = 80;
/// Counts are halved after so many requests for each place.
const SAMPLE: usize = 10;
const MOST: u8 = 15;
const ROWS: usize = 4;
/// One odd factor for each row.
const FACTORS: [u64; ROWS] =
    [0xc3a5_c85c_97cb_3127, 0xb492_b66f_be98_f273, 0x9ae1_6a3b_2f90_404f, 0xcbf2_9ce4_8422_2325];

pub struct TinyLfu {
    room_window: usize,
    room_main: usize,
    room_protected: usize,
    window: List,
    probation: List,
    protected: List,
    sketch: Sketch,
}

impl TinyLfu {
    pub fn new(objects: usize, room: usize) -> Self {
        let list = || List::new(objects);
        let room_window = (room * WINDOW / 100).max(1);
        let room_main = room - room_window;
        TinyLfu {
            room_window,
            room_main,
            room_protected: room_main * PROTECTED / 100,
            window: list(),
            probation: list(),
            protected: list(),
            sketch: Sketch::new(room),
        }
    }

    /// What leaves the window wants into the main part.
    fn admit(&mut self, candidate: usize) {
        if self.probation.len() + self.protected.len() < self.room_main {
            self.probation.push_front(candidate);
            return;
        }
        let victim = self.probation.last().or_else(|| self.protected.last());
        let Some(victim) = victim else { return };
        if self.sketch.count(candidate) <= self.sketch.count(victim) {
            return;
        }
        match self.probation.contains(victim) {
            true => self.probation.remove(victim),
            false => self.protected.remove(victim),
        }
        self.probation.push_front(candidate);
    }

    fn protect(&mut self, object: usize) {
        self.probation.remove(object);
        self.protected.push_front(object);
        if self.protected.len() > self.room_protected
            && let Some(demoted) = self.protected.pop_back()
        {
            self.probation.push_front(demoted);
        }
    }
}

impl Policy for TinyLfu {
    fn ask(&mut self, object: usize) -> bool {
        self.sketch.add(object);
        if self.window.contains(object) {
            self.window.to_front(object);
        } else if self.protected.contains(object) {
            self.protected.to_front(object);
        } else if self.probation.contains(object) {
            self.protect(object);
        } else {
            self.window.push_front(object);
            if self.window.len() > self.room_window
                && let Some(candidate) = self.window.pop_back()
            {
                self.admit(candidate);
            }
            return false;
        }
        true
    }
}

/// About how often each object was asked for lately (a count-min sketch).
struct Sketch {
    rows: [Vec<u8>; ROWS],
    added: usize,
    sample: usize,
}

impl Sketch {
    fn new(room: usize) -> Self {
        // As many counters in each row as requests are in the sample, so that few share one.
        let width = (room * SAMPLE).next_power_of_two();
        Sketch { rows: std::array::from_fn(|_| vec![0; width]), added: 0, sample: room * SAMPLE }
    }

    fn add(&mut self, object: usize) {
        let least = self.count(object);
        for (row, factor) in self.rows.iter_mut().zip(FACTORS) {
            let at = place(object, factor, row.len());
            // Only the lowest ones grow: the others count somebody else, too.
            if let Some(count) = row.get_mut(at).filter(|count| **count == least && least < MOST) {
                *count += 1;
            }
        }
        self.added += 1;
        if self.added >= self.sample {
            self.added /= 2;
            self.rows.iter_mut().flatten().for_each(|count| *count /= 2);
        }
    }

    fn count(&self, object: usize) -> u8 {
        let rows = self.rows.iter().zip(FACTORS);
        let counts =
            rows.filter_map(|(row, factor)| row.get(place(object, factor, row.len())).copied());
        counts.min().unwrap_or(0)
    }
}

/// Which of `width` counters, a power of two.
fn place(object: usize, factor: u64, width: usize) -> usize {
    let mixed = (object as u64 + 1).wrapping_mul(factor);
    usize::try_from((mixed ^ (mixed >> 32)) & (width as u64 - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_counts_and_forgets() {
        let mut sketch = Sketch::new(100);
        (0..10).for_each(|_| sketch.add(1));
        (0..3).for_each(|_| sketch.add(2));
        assert_eq!((sketch.count(1), sketch.count(2), sketch.count(3)), (10, 3, 0));
        (0..987).for_each(|object| sketch.add(1000 + object));
        assert!((5..=6).contains(&sketch.count(1)), "{}", sketch.count(1));
    }
}
