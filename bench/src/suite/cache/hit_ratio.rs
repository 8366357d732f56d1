//! How often there is an answer in memory, by the rule that says which one makes room.

use super::super::Bench;
use super::policies::{Lru, Policy, Quick, S3Fifo, TinyLfu};
use super::trace::Zipf;
use crate::peer::LENO;
use crate::report::{Better, Figure};

const OBJECTS: usize = 100_000;
/// So many requests fill the cache, as many are counted.
const REQUESTS: usize = 1_000_000;
/// Bodies of the responses that Leno's store is given, which counts bytes.
const BODY: u64 = 1024;
const LARGE_BODY: u64 = 16 * 1024;
/// Of the objects: what there is room for, with the ids of the figures.
const ROOMS: [(&str, usize, &str, &str); 2] =
    [("1 %", OBJECTS / 100, "hits-1", "gain-1"), ("10 %", OBJECTS / 10, "hits-10", "gain-10")];

const LRU: &str = "LRU";
const LENO_LARGE: &str = "leno, 16 KiB";

pub fn run(bench: &mut Bench) {
    bench.report.work.push(format!(
        "hit ratio: {OBJECTS} objects of one size asked for by Zipf's law with exponent 1.0, {REQUESTS} requests to fill \
         the cache and as many that count, another trace each round; S3-FIFO and W-TinyLFU as their papers have them; \
         leno: the crate that is its store, with the store's settings, and bodies of 1 KiB (16 KiB where it says so); \
         the most popular: if they, and nothing else, were always there"
    ));
    for (title, room, hits, gain) in ROOMS {
        let mut ratios = figure(hits, format!("hit ratio with room for {title}"), "%");
        let mut gains =
            figure(gain, format!("the same, less that of LRU, with room for {title}"), "points");
        if room == OBJECTS / 100 {
            gains = gains.at_least_absolute(10.0);
        }
        for round in 0..bench.settings.rounds {
            let found = replay(room, round as u64 + 1);
            let lru = found.iter().find(|(name, _)| *name == LRU).map_or(0.0, |(_, ratio)| *ratio);
            for (name, ratio) in found {
                ratios.record(name, round, ratio);
                if name != LRU {
                    gains.record(name, round, ratio - lru);
                }
            }
        }
        bench.report.figures.extend([ratios, gains]);
    }
}

fn figure(id: &'static str, title: String, unit: &'static str) -> Figure {
    Figure::new(id, title, unit).better(Better::Higher).decimals(2)
}

/// Per cent of hits by rule.
fn replay(room: usize, seed: u64) -> Vec<(&'static str, f64)> {
    let rules: [(&'static str, Box<dyn Policy>); 5] = [
        (LRU, Box::new(Lru::new(OBJECTS, room))),
        ("S3-FIFO", Box::new(S3Fifo::new(OBJECTS, room))),
        ("W-TinyLFU", Box::new(TinyLfu::new(OBJECTS, room))),
        (LENO, Box::new(Quick::new(room, BODY))),
        (LENO_LARGE, Box::new(Quick::new(room, LARGE_BODY))),
    ];
    let mut found: Vec<_> = rules
        .into_iter()
        .map(|(name, mut rule)| {
            let mut trace = Zipf::new(OBJECTS, seed);
            (0..REQUESTS).for_each(|_| _ = rule.ask(trace.object()));
            let hits = (0..REQUESTS).filter(|_| rule.ask(trace.object())).count();
            (name, hits as f64 * 100.0 / REQUESTS as f64)
        })
        .collect();
    found.push(("the most popular", Zipf::new(OBJECTS, seed).share_of(room) * 100.0));
    found
}
