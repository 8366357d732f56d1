//! `instructions`: Leno's user-space instructions for each request, counted by valgrind.
//!
//! CPU time on a shared machine moves by several per cent from run to run; a count of instructions
//! does not, so a regression of three per cent shows. It says nothing of the kernel's share, nor of
//! cache misses: it guards the hot path, it does not compare programs.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Bench, Contestant, Origin, Settings};
use crate::load::http1::Http1Load;
use crate::peer::{LENO, Mode, Place, Setup, look_up};
use crate::report::Figure;

/// A run with few requests and one with more: what start and end cost is the same in both, and the
/// difference is that of the requests between.
const FEW: usize = 500;
const MORE: usize = 2_500;
/// Programs end fifty times slower under valgrind than by themselves.
const END_PATIENCE: Duration = Duration::from_secs(60);
const ARGUMENTS: [&str; 2] = ["--tool=callgrind", "--callgrind-out-file=callgrind.%p"];

pub fn run(bench: &mut Bench) -> Result<()> {
    look_up("valgrind").context("valgrind is not installed: apt-get install valgrind")?;
    // It guards Leno's hot path against Leno of yesterday; peers are compared by time.
    bench.peers.retain(|(peer, _)| peer.name() == LENO);
    bench.report.work.push(format!(
        "GET with a body of 1 KiB on one keep-alive connection, {MORE} requests less {FEW}, user \
         space only"
    ));
    let figures = vec![Figure::new("instructions", "instructions per request", "").decimals(0)];
    bench.rounds(figures, |settings, origin, contestant| {
        let few = count(settings, origin, contestant, FEW)?;
        let more = count(settings, origin, contestant, MORE)?;
        let difference = more.checked_sub(few).context("more requests took fewer instructions")?;
        Ok(vec![("instructions", difference as f64 / (MORE - FEW) as f64)])
    })
}

/// Instructions of a whole run with so many requests.
fn count(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    requests: usize,
) -> Result<u64> {
    let valgrind = look_up("valgrind").context("valgrind has gone")?;
    let place = Place::new(settings.cores)?.under(valgrind, &ARGUMENTS);
    let setup = Setup::new(Mode::Http1, origin.addresses.http1);
    contestant.peer.configure(&place, &setup)?;
    let running = contestant.peer.start(contestant.found, &place, &setup)?;
    let mut load = Http1Load::connect(&running.target("/1k"), 1)?;
    for _ in 0..requests {
        load.touch_each()?;
    }
    drop(load);
    let said = running.process.context("nothing runs")?.finish(END_PATIENCE)?;
    collected(&said).with_context(|| format!("valgrind counted nothing; it said:\n{said}"))
}

/// What callgrind says at the end.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| {
        let (_, count) = line.strip_prefix("==")?.split_once("== Collected : ")?;
        count.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_among_other_words() {
        let said = "==7== Callgrind\nnoise\n==7== Collected : 1234\n";
        assert_eq!(collected(said), Some(1234));
        assert_eq!(collected("==7== Callgrind\n"), None);
    }
}
