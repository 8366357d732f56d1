//! Rules of eviction, as their papers have them, for objects of one size.

mod linked;
mod lru;
mod quick;
mod s3_fifo;
mod tiny_lfu;

pub use lru::Lru;
pub use quick::Quick;
pub use s3_fifo::S3Fifo;
pub use tiny_lfu::TinyLfu;

/// What keeps objects.
pub trait Policy {
    /// An object is asked for: whether it was there. It may be afterwards.
    fn ask(&mut self, object: usize) -> bool;
}

#[cfg(test)]
mod tests {
    use super::super::trace::Zipf;
    use super::*;

    fn all(objects: usize, room: usize) -> [(&'static str, Box<dyn Policy>); 4] {
        [
            ("LRU", Box::new(Lru::new(objects, room))),
            ("S3-FIFO", Box::new(S3Fifo::new(objects, room))),
            ("W-TinyLFU", Box::new(TinyLfu::new(objects, room))),
            ("quick", Box::new(Quick::new(room, 1024))),
        ]
    }

    #[test]
    fn what_fits_is_kept_and_no_more_than_that() {
        for (name, mut policy) in all(200, 100) {
            for _ in 0..3 {
                (0..50).for_each(|object| _ = policy.ask(object));
            }
            let kept = (0..50).filter(|object| policy.ask(*object)).count();
            assert!(kept >= 45, "{name}: {kept} of 50");
            for _ in 0..5 {
                (0..200).for_each(|object| _ = policy.ask(object));
            }
            let mut hits = 0;
            // In the other direction, so that those kept last come first: none makes room for another before it is seen.
            for object in (0..200).rev() {
                hits += usize::from(policy.ask(object));
            }
            assert!(hits <= 130, "{name}: {hits} of 100 places");
        }
    }

    #[test]
    fn a_scan_costs_lru_everything_and_the_others_little() {
        for (name, mut policy) in all(10_000, 100) {
            for _ in 0..20 {
                (0..50).for_each(|object| _ = policy.ask(object));
            }
            (1000..2000).for_each(|object| _ = policy.ask(object));
            let kept = (0..50).filter(|object| policy.ask(*object)).count();
            assert!(if name == "LRU" { kept == 0 } else { kept >= 40 }, "{name}: {kept}");
        }
    }

    #[test]
    fn none_beats_the_most_popular() {
        for (name, mut policy) in all(10_000, 100) {
            let mut zipf = Zipf::new(10_000, 7);
            (0..200_000).for_each(|_| _ = policy.ask(zipf.object()));
            let hits = (0..200_000).filter(|_| policy.ask(zipf.object())).count();
            let ratio = hits as f64 / 200_000.0;
            assert!((0.3..=zipf.share_of(100) + 0.01).contains(&ratio), "{name}: {ratio}");
        }
    }
}
