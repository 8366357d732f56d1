//! The hash by which requests and endpoints find their places: the same in every proxy and every release, as two
//! proxies must send the same session to the same endpoint.

const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0xd1b5_4a32_d192_ed03;

/// 64 bits of `bytes`, another 64 for each `seed`. Not for secrets: who knows it can aim at an endpoint, which is what
/// the bound on its load is for.
pub fn hash(bytes: &[u8], seed: u64) -> u64 {
    let mut state = mix(seed ^ FIRST, bytes.len() as u64 ^ SECOND);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = finish(state ^ u64::from_le_bytes(word)).wrapping_add(FIRST);
    }
    finish(state)
}

/// Another 64 bits from 64 bits and a number.
pub(super) fn rehash(hash: u64, number: u64) -> u64 {
    mix(hash, finish(number.wrapping_add(FIRST)))
}

/// Both together; keeps all of `one`'s bits.
fn mix(one: u64, other: u64) -> u64 {
    finish(one.rotate_left(23) ^ other.wrapping_mul(SECOND))
}

/// A bijection in which each bit depends on all: the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
fn finish(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A release that hashes otherwise moves everybody's sessions.
    #[test]
    fn hashes_never_change() {
        let hashes = [hash(b"", 0), hash(b"shop/orders-1", 0), hash(b"shop/orders-1", 1)];
        assert_eq!(hashes, [0xded3_055f_34f1_87e0, 0x8a12_6317_6f89_875b, 0x00be_ded7_4401_5422]);
    }

    #[test]
    fn neighbours_are_spread_evenly() {
        let mut counts = [0u32; 64];
        for number in 0..64_000 {
            counts[(hash(format!("user-{number}").as_bytes(), 0) >> 58) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        let lengths: BTreeSet<u64> = (0..100).map(|length| hash(&vec![0; length], 0)).collect();
        assert_eq!(lengths.len(), 100, "zeros of different length are different");
    }

    proptest! {
        /// Any bit of the input or of the seed changes about half of the hash.
        #[test]
        fn every_bit_counts(bytes in proptest::collection::vec(any::<u8>(), 1..40), seed: u64, bit: u16) {
            let mut other = bytes.clone();
            let bit = usize::from(bit) % (bytes.len() * 8);
            other[bit / 8] ^= 1 << (bit % 8);
            let changed = (hash(&bytes, seed) ^ hash(&other, seed)).count_ones();
            prop_assert!((8..=56).contains(&changed), "{changed}");
            let reseeded = hash(&bytes, seed) ^ hash(&bytes, seed ^ (1 << (bit % 64)));
            prop_assert!((8..=56).contains(&reseeded.count_ones()));
        }
    }
}
