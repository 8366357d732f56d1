//! Peak-EWMA: how long each endpoint lately took, and power of two choices by it. Pure: `now` is the time since any
//! fixed start, and where it goes backwards no time has passed.
//!
//! After Finagle's `PeakEwma`: a latency above the average is the new average at once, one below moves it by how much
//! time has passed, so that it reacts fast to what gets slow and trusts slowly what gets fast. What differs: an
//! endpoint nobody asks for a while drifts to the median of all, not to zero (it is unknown, not fast); a failure
//! counts as no better than the worst of late; and what is compared is the average over the share that succeeded, the
//! time a success is to be expected to take with retries. Without that, whoever answers 503 at once never has anything
//! under way, and draws the more requests the busier the others are.
//!
//! Each worker keeps [`Latencies`] of its own for each cluster: nothing is shared but the attempts under way.

use std::time::Duration;

use super::{balance::draw::Draw, outlier::Factor};

/// After this long an observation weighs a third (1/e); Finagle's and Linkerd's default.
pub const DECAY: Duration = Duration::from_secs(10);
/// The range of decays. Zero would forget everything at once.
pub const DECAY_RANGE: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(600));
/// What stands for a latency where none is measured: then only the attempts under way count.
const UNMEASURED: f64 = 1.0;
/// How often a candidate is drawn before all are looked at. With half of them ejected one pick in 256 comes to that,
/// so that the mean cost does not depend on how many there are.
const DRAWS: u32 = 8;
/// How much one result moves the share of failures: after six failures in a row it is over a half.
const FAILURE_STEP: f64 = 0.125;
/// The least share of successes that is taken to be: who only fails still costs no more than a thousand times.
const MIN_SUCCESS: f64 = 0.001;

/// Latencies of a cluster's endpoints as one worker sees them.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// In nanoseconds, as are all averages.
    decay: f64,
    cells: Vec<Cell>,
    /// The median of those measured, or [`UNMEASURED`].
    baseline: f64,
    /// The worst of late among what succeeded; fades to the baseline.
    worst: f64,
    settled: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    endpoint: u64,
    /// Not yet measured where `None`.
    average: Option<f64>,
    /// 0 to 1, over the last results.
    failures: f64,
    observed: Duration,
}

/// What there is to know of a candidate besides its weight.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// From [`Latencies::at`].
    pub latency: f64,
    /// Attempts under way from this proxy.
    pub active: u32,
    /// Its share; [`Factor::NONE`] also for who was already tried.
    pub factor: Factor,
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new(DECAY)
    }
}

impl Latencies {
    /// Without endpoints; `decay` is clamped to [`DECAY_RANGE`].
    pub fn new(decay: Duration) -> Self {
        let decay = nanos(decay.clamp(DECAY_RANGE.0, DECAY_RANGE.1));
        Self { decay, cells: Vec::new(), baseline: UNMEASURED, worst: 0.0, settled: Duration::ZERO }
    }

    /// Takes another decay over; what was measured stays.
    pub fn retune(&mut self, decay: Duration) {
        self.decay = nanos(decay.clamp(DECAY_RANGE.0, DECAY_RANGE.1));
    }

    /// Takes the cluster's present endpoints over, in their order; what is known of those that stay is kept.
    pub fn reconcile(&mut self, endpoints: impl IntoIterator<Item = u64>) {
        let mut before = std::mem::take(&mut self.cells);
        before.sort_unstable_by_key(|cell| cell.endpoint);
        let known = |endpoint: u64| {
            before.binary_search_by_key(&endpoint, |cell| cell.endpoint).map(|at| before[at])
        };
        let unknown =
            |endpoint| Cell { endpoint, average: None, failures: 0.0, observed: Duration::ZERO };
        self.cells = endpoints
            .into_iter()
            .map(|endpoint| known(endpoint).unwrap_or_else(|_| unknown(endpoint)))
            .collect();
    }

    /// How long the endpoint at `place` is to be expected to take for a success, in nanoseconds, or what stands for
    /// it where nothing was measured; above 0.
    pub fn at(&self, place: usize) -> f64 {
        self.cells.get(place).and_then(Cell::expected).unwrap_or(self.baseline)
    }

    /// The average latency of the endpoint at `place`, for people; `None` where nothing was measured.
    pub fn estimate(&self, place: usize) -> Option<Duration> {
        let average = self.cells.get(place)?.average?;
        Some(Duration::try_from_secs_f64(average / 1e9).unwrap_or(Duration::MAX))
    }

    /// Takes a result in. `place` is where the endpoint was when it was picked; it is looked for where it is no longer
    /// there, and a result of who is gone is dropped.
    pub fn observe(
        &mut self,
        place: usize,
        endpoint: u64,
        now: Duration,
        latency: Duration,
        failed: bool,
    ) {
        let is_it = |cell: &Cell| cell.endpoint == endpoint;
        let place = match self.cells.get(place) {
            Some(cell) if is_it(cell) => Some(place),
            _ => self.cells.iter().position(is_it),
        };
        let Some(cell) = place.and_then(|place| self.cells.get_mut(place)) else {
            return;
        };
        // A zero would make all of a candidate's load weigh nothing.
        let measured = nanos(latency).max(1.0);
        let latency = if failed { measured.max(self.worst) } else { measured };
        let elapsed = nanos(now.saturating_sub(cell.observed));
        let average = match cell.average {
            Some(average) if average > latency => {
                let kept = (-elapsed / self.decay).exp();
                average * kept + latency * (1.0 - kept)
            }
            _ => latency,
        };
        cell.average = Some(average);
        if self.baseline == UNMEASURED {
            // Until the median is known: else whoever answers last gets everything until then, as it looks fastest.
            self.baseline = average;
        }
        cell.failures += FAILURE_STEP * (f64::from(u8::from(failed)) - cell.failures);
        cell.observed = cell.observed.max(now);
        if !failed {
            // One timeout must not make every failure elsewhere cost as much.
            self.worst = self.worst.max(measured);
        }
    }

    /// Lets fade what nobody observed since the last call, and finds the median: to be called about every 100 ms, as it
    /// looks at all.
    ///
    /// Also of who has attempts under way: a stream may last for hours, and who never answers is held off by how many
    /// it owes.
    pub fn settle(&mut self, now: Duration) {
        let elapsed = nanos(now.saturating_sub(self.settled));
        let kept = (-elapsed / self.decay).exp();
        self.baseline = self.median();
        let baseline = self.baseline;
        // Not `baseline + (average - baseline) * kept`, which cancels out where one is far above the other.
        let fade = |average: f64| average * kept + baseline * (1.0 - kept);
        for cell in self.cells.iter_mut().filter(|cell| cell.observed < self.settled) {
            cell.average = cell.average.map(fade);
            cell.failures *= kept;
        }
        self.worst = fade(self.worst);
        self.settled = self.settled.max(now);
    }

    fn median(&self) -> f64 {
        let mut averages: Vec<f64> = self.cells.iter().filter_map(|cell| cell.average).collect();
        if averages.is_empty() {
            return UNMEASURED;
        }
        // Of two the lower: else the slower of two endpoints would stay so for good, as nobody asks it.
        let middle = (averages.len() - 1) / 2;
        *averages.select_nth_unstable_by(middle, f64::total_cmp).1
    }
}

impl Cell {
    fn expected(&self) -> Option<f64> {
        Some(self.average? / (1.0 - self.failures).max(MIN_SUCCESS))
    }
}

impl Load {
    /// What the next attempt costs there: the average for itself and for each attempt before it in the queue, which a
    /// heavier candidate works off faster. `weight` is over the mean of all, so that with equal weights this is
    /// Finagle's `average * (active + 1)`.
    ///
    /// The weight only divides the queue: candidates are drawn by weight already, and dividing all of it would send
    /// everything to the heaviest as long as nobody is busy.
    fn cost(&self, weight: f64) -> f64 {
        self.latency * (1.0 + f64::from(self.active) / (weight * self.factor.share()))
    }
}

/// Power of two choices: of two candidates drawn by weight and health, the one whose next attempt costs less. `None`
/// where nobody has both a weight and a factor.
///
/// Looks at two candidates, not at all, unless most of them are ejected. (Mitzenmacher, "The Power of Two Choices in
/// Randomized Load Balancing", 2001.)
pub fn pick(
    draw: &Draw,
    load: impl Fn(usize) -> Load,
    random: &mut dyn FnMut() -> u64,
) -> Option<usize> {
    if draw.len() == 1 {
        let there = draw.weight(0) > 0.0 && load(0).factor != Factor::NONE;
        return there.then_some(0);
    }
    let mut accepted = |draw_one: &mut dyn FnMut(u64) -> Option<usize>| {
        (0..DRAWS).find_map(|_| {
            let place = draw_one(random())?;
            let candidate = load(place);
            candidate.factor.accepts(random).then_some((place, candidate))
        })
    };
    let Some((first, one)) = accepted(&mut |random| draw.draw(random)) else {
        return cheapest(draw, load, random);
    };
    let Some((second, other)) = accepted(&mut |random| draw.draw_other(first, random)) else {
        return Some(first);
    };
    let less = other.cost(draw.weight(second)) < one.cost(draw.weight(first));
    Some(if less { second } else { first })
}

/// Of all, from a random one onwards so that equals take turns.
fn cheapest(
    draw: &Draw,
    load: impl Fn(usize) -> Load,
    random: &mut dyn FnMut() -> u64,
) -> Option<usize> {
    let start = draw.draw(random())?;
    let places = (start..draw.len()).chain(0..start);
    let cost = |place: usize| {
        let (load, weight) = (load(place), draw.weight(place));
        (load.factor != Factor::NONE && weight > 0.0).then(|| (place, load.cost(weight)))
    };
    let cheaper = |one: &(usize, f64), other: &(usize, f64)| one.1.total_cmp(&other.1);
    places.filter_map(cost).min_by(cheaper).map(|(place, _)| place)
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests;
