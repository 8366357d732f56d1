//! What a run found: collected here, shown as Markdown (`table`), a plot (`svg`) and JSON.

pub mod svg;
pub mod table;

use serde::Serialize;

use crate::peer::{LENO, LENO_MANAGED, RELAY};
use crate::statistics::{Spread, ratio, spread};

/// A whole run of one suite.
#[derive(Debug, Serialize)]
pub struct Report {
    pub suite: &'static str,
    pub title: &'static str,
    pub command: String,
    pub machine: Vec<String>,
    /// The work every program was given.
    pub work: Vec<String>,
    pub programs: Vec<Program>,
    pub skipped: Vec<Skipped>,
    pub remarks: Vec<String>,
    /// Rounds that failed: program, round and why.
    pub failures: Vec<String>,
    pub figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
pub struct Program {
    pub name: &'static str,
    pub version: String,
}

/// A program that could not take part, and what would let it.
#[derive(Debug, Serialize)]
pub struct Skipped {
    pub name: &'static str,
    pub reason: String,
    pub remedy: String,
}

/// One thing measured, for every program in every round.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub id: &'static str,
    pub title: String,
    pub unit: &'static str,
    pub better: Better,
    /// Decimals worth showing.
    pub decimals: usize,
    pub targets: Vec<Target>,
    pub series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
    /// Says something about the measurement, not about the program: no ratios.
    Neither,
}

/// The values of one program, a place a round; none where its round failed.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub program: &'static str,
    pub rounds: Vec<Option<f64>>,
}

/// What Leno must reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Target {
    /// Whose figure it is a multiple of; without one it is absolute.
    pub against: Option<&'static str>,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A target beside what was found.
#[derive(Debug)]
pub struct Verdict<'a> {
    pub program: &'static str,
    pub figure: &'a Figure,
    pub target: Target,
    pub found: Spread,
    pub reached: bool,
}

impl Figure {
    pub fn new(id: &'static str, title: impl Into<String>, unit: &'static str) -> Self {
        Figure {
            id,
            title: title.into(),
            unit,
            better: Better::Lower,
            decimals: 1,
            targets: Vec::new(),
            series: Vec::new(),
        }
    }

    pub fn better(self, better: Better) -> Self {
        Figure { better, ..self }
    }

    pub fn decimals(self, decimals: usize) -> Self {
        Figure { decimals, ..self }
    }

    /// Leno must be at most `factor` times `program`.
    pub fn at_most(mut self, factor: f64, program: &'static str) -> Self {
        self.targets.push(Target { against: Some(program), bound: Bound::AtMost(factor) });
        self
    }

    /// Leno must be at least `factor` times `program`.
    pub fn at_least(mut self, factor: f64, program: &'static str) -> Self {
        self.targets.push(Target { against: Some(program), bound: Bound::AtLeast(factor) });
        self
    }

    /// Leno must be at most `value`, in the figure's unit.
    pub fn at_most_absolute(mut self, value: f64) -> Self {
        self.targets.push(Target { against: None, bound: Bound::AtMost(value) });
        self
    }

    /// Leno must be at least `value`, in the figure's unit.
    pub fn at_least_absolute(mut self, value: f64) -> Self {
        self.targets.push(Target { against: None, bound: Bound::AtLeast(value) });
        self
    }

    pub fn rounds_of(&self, program: &str) -> Option<&[Option<f64>]> {
        self.series
            .iter()
            .find(|series| series.program == program)
            .map(|series| series.rounds.as_slice())
    }

    pub fn spread_of(&self, program: &str) -> Option<Spread> {
        spread(self.rounds_of(program)?.iter().copied().flatten())
    }

    /// `program` as a multiple of the null relay.
    pub fn of_relay(&self, program: &str) -> Option<Spread> {
        if self.better == Better::Neither {
            return None;
        }
        ratio(self.rounds_of(program)?, self.rounds_of(RELAY)?)
    }

    /// Leno as a multiple of `program`.
    pub fn leno_of(&self, program: &str) -> Option<Spread> {
        if program == LENO || self.better == Better::Neither {
            return None;
        }
        ratio(self.rounds_of(LENO)?, self.rounds_of(program)?)
    }

    /// The targets that this run can judge.
    pub fn verdicts(&self) -> impl Iterator<Item = Verdict<'_>> {
        let cases = |target| [LENO, LENO_MANAGED].map(|program| (program, target));
        self.targets.iter().flat_map(cases).filter_map(|(program, target): (_, &Target)| {
            let found = match target.against {
                Some(peer) if program == LENO => self.leno_of(peer)?,
                Some(_) => return None,
                None => self.spread_of(program)?,
            };
            let reached = match target.bound {
                Bound::AtMost(bound) => found.median <= bound,
                Bound::AtLeast(bound) => found.median >= bound,
            };
            Some(Verdict { program, figure: self, target: *target, found, reached })
        })
    }

    /// Records a value of `program` in round `round`.
    pub fn record(&mut self, program: &'static str, round: usize, value: f64) {
        let at = self.series.iter().position(|series| series.program == program);
        let at = at.unwrap_or_else(|| {
            self.series.push(Series { program, rounds: Vec::new() });
            self.series.len() - 1
        });
        let Some(series) = self.series.get_mut(at) else { return };
        if series.rounds.len() <= round {
            series.rounds.resize(round + 1, None);
        }
        if let Some(place) = series.rounds.get_mut(round) {
            *place = Some(value);
        }
    }
}

impl Report {
    /// The values with everything derived from them: what `--json` writes.
    pub fn to_json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Summary<'a> {
            figure: &'a str,
            program: &'a str,
            spread: Option<Spread>,
            of_null_relay: Option<Spread>,
            leno_of_it: Option<Spread>,
        }
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            summary: Vec<Summary<'a>>,
        }
        let summary = self.figures.iter().flat_map(|figure| {
            figure.series.iter().map(|series| Summary {
                figure: figure.id,
                program: series.program,
                spread: figure.spread_of(series.program),
                of_null_relay: figure.of_relay(series.program),
                leno_of_it: figure.leno_of(series.program),
            })
        });
        serde_json::to_string_pretty(&Whole { report: self, summary: summary.collect() })
    }
}

/// A number with thin groups of thousands, as people read it.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests;
