//! What came of a scenario.

use std::{fmt, ops::Range, time::Duration};

/// One request, as its caller saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// When it came.
    pub arrived: Duration,
    /// How long it took.
    pub took: Duration,
    /// Whether the caller got what it wanted.
    pub succeeded: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Figures {
    /// In the order of arrival.
    pub requests: Vec<Seen>,
    /// When an attempt began, and where.
    pub attempts: Vec<(Duration, usize)>,
}

/// Of some seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The share of them that succeeded.
    pub success: f64,
    /// The time in which 99 % of them had succeeded; `MAX` where fewer ever did.
    pub p99: Duration,
    /// Attempts per request.
    pub amplification: f64,
    /// Successes per second.
    pub goodput: f64,
}

impl Figures {
    /// Of these seconds.
    pub fn of(&self, range: Range<u64>) -> Summary {
        let inside = |at: Duration| range.contains(&at.as_secs());
        let seen: Vec<&Seen> = self.requests.iter().filter(|it| inside(it.arrived)).collect();
        let mut times: Vec<Duration> =
            seen.iter().filter(|it| it.succeeded).map(|it| it.took).collect();
        times.sort_unstable();
        let attempts = self.attempts.iter().filter(|(at, _)| inside(*at)).count();
        let requests = seen.len().max(1) as f64;
        Summary {
            success: times.len() as f64 / requests,
            p99: times.get(seen.len() * 99 / 100).copied().unwrap_or(Duration::MAX),
            amplification: attempts as f64 / requests,
            goodput: times.len() as f64 / (range.end - range.start) as f64,
        }
    }

    /// Which share of the attempts of these seconds went to `place`.
    pub fn share(&self, place: usize, range: Range<u64>) -> f64 {
        let inside = |at: Duration| range.contains(&at.as_secs());
        let all = self.attempts.iter().filter(|(at, _)| inside(*at));
        let own = all.clone().filter(|(_, at)| *at == place).count();
        own as f64 / all.count().max(1) as f64
    }
}

impl Summary {
    /// The worse of each.
    pub fn worse(self, other: Self) -> Self {
        Self {
            success: self.success.min(other.success),
            p99: self.p99.max(other.p99),
            amplification: self.amplification.max(other.amplification),
            goodput: self.goodput.min(other.goodput),
        }
    }

    /// The better of each.
    pub fn better(self, other: Self) -> Self {
        Self {
            success: self.success.max(other.success),
            p99: self.p99.min(other.p99),
            amplification: self.amplification.min(other.amplification),
            goodput: self.goodput.max(other.goodput),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let success = self.success * 100.0;
        match self.p99 {
            Duration::MAX => write!(f, "{success:7.3} %     never  ")?,
            p99 => write!(f, "{success:7.3} %  {:5} ms  ", p99.as_millis())?,
        }
        write!(f, "{:5.3}  {:6.0}/s", self.amplification, self.goodput)
    }
}
