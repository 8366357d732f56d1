//! What Leno's store keeps: the crate `quick_cache` with the settings of `proxy/src/cache/store.rs`.

use quick_cache::{OptionsBuilder, Weighter, sync::Cache};

use super::Policy;

/// Settings of the store; they must be the same there.
const OVERHEAD: u64 = 2 * 512;
const USUAL_SIZE: u64 = 8 * 1024;
const OBJECTS_IN_A_SHARD: u64 = 8;
const MOST_SHARDS: u64 = 64;
const LEAST_IN_A_SHARD: u64 = 32;
/// The largest response that a policy keeps, unless it says otherwise.
const LARGEST: u64 = 1 << 20;
/// URL and header fields of a usual response, as the store counts them.
const HEAD: u64 = 600;

pub struct Quick {
    kept: Cache<usize, u64, Weight>,
    weight: u64,
}

#[derive(Clone)]
struct Weight;

impl Weighter<usize, u64> for Weight {
    fn weight(&self, _object: &usize, weight: &u64) -> u64 {
        *weight
    }
}

impl Quick {
    /// With room for so many responses with a body of `body` bytes.
    pub fn new(room: usize, body: u64) -> Self {
        let weight = OVERHEAD + HEAD + body;
        let bytes = room as u64 * weight;
        let largest = LARGEST.min(bytes / 8).max(1);
        let shards = bytes / largest / OBJECTS_IN_A_SHARD;
        let shards = shards.clamp(1, MOST_SHARDS).next_power_of_two();
        let usual = (bytes / USUAL_SIZE).clamp(shards * LEAST_IN_A_SHARD, 1 << 20);
        let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(whole(shards))
            .weight_capacity(bytes)
            .estimated_items_capacity(whole(usual))
            .build();
        let kept = match options {
            Ok(options) => {
                Cache::with_options(options, Weight, Default::default(), Default::default())
            }
            // Not without both capacities, which stand above.
            Err(_) => Cache::with_weighter(whole(usual), bytes, Weight),
        };
        Quick { kept, weight }
    }
}

impl Policy for Quick {
    fn ask(&mut self, object: usize) -> bool {
        let hit = self.kept.get(&object).is_some();
        if !hit {
            self.kept.insert(object, self.weight);
        }
        hit
    }
}
