//! Runs fuzz targets on stable, in ordinary tests: on every seed, and on mutations of seeds that are the same in
//! every run. Less than a fuzzer does, which looks where the code has not been yet; enough that no target rots.

use std::{fs, path::Path};

/// Of an input: what is worth finding fits, and the tests stay short.
const MAX_BYTES: usize = 4096;
/// Where something begins or ends in many formats.
const EDGES: [u8; 10] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, b' ', b'"', b'\n', b'9'];

/// Runs `check` on the seeds of `target`, then on `rounds` mutations of them.
pub fn run(target: &str, rounds: u32, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mutations = (0..rounds).map(|_| random.mutation(&seeds));
    for input in [Vec::new()].into_iter().chain(seeds.iter().cloned()).chain(mutations) {
        let shown = Shown(&input);
        check(shown.0);
    }
}

/// Tells which input it was that broke the target.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: b\"{}\"", self.0.escape_ascii());
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`, or 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        match self.below(2) {
            0 => EDGES[self.below(EDGES.len())],
            _ => self.next() as u8,
        }
    }

    /// A part of some seed.
    fn part<'a>(&mut self, seeds: &'a [Vec<u8>]) -> &'a [u8] {
        let seed = &seeds[self.below(seeds.len())];
        let start = self.below(seed.len());
        let length = self.below(32).min(seed.len() - start);
        &seed[start..start + length]
    }

    fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(input.len());
            match self.below(7) {
                0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                1 if !input.is_empty() => input[at] = self.byte(),
                2 => input.insert(at, self.byte()),
                3 => input.truncate(at),
                4 => drop(input.drain(at..(at + self.below(16)).min(input.len()))),
                5 => drop(input.splice(at..at, self.part(seeds).iter().copied())),
                _ => {
                    let part = self.part(seeds);
                    let end = (at + part.len()).min(input.len());
                    drop(input.splice(at..end, part.iter().copied()));
                }
            }
        }
        input.truncate(MAX_BYTES);
        input
    }
}
