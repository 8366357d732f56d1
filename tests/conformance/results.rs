//! What the tests said: counts, the list of known failures and the page in `docs/`, as data in, data out.

use std::{collections::BTreeMap, fmt::Write as _};

/// How much a test asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The specification says so.
    Required,
    /// A good cache does so.
    Optimal,
    /// A question without a right answer.
    Check,
}

/// What cache-tests.fyi would show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail,
    Suboptimal,
    Yes,
    No,
    /// What had to hold for the test did not.
    Setup,
    /// The cache sent a request twice.
    Retry,
    /// A test that this one builds on did not pass.
    Dependency,
    /// Only for browsers.
    Untested,
}

const VERDICTS: &[(Verdict, &str)] = &[
    (Verdict::Pass, "pass"),
    (Verdict::Fail, "fail"),
    (Verdict::Suboptimal, "suboptimal"),
    (Verdict::Yes, "yes"),
    (Verdict::No, "no"),
    (Verdict::Setup, "setup"),
    (Verdict::Retry, "retry"),
    (Verdict::Dependency, "dependency"),
    (Verdict::Untested, "untested"),
];

/// One test and what became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub id: String,
    pub suite: String,
    /// In words; Markdown.
    pub name: String,
    pub kind: Kind,
    /// Not for shared caches.
    pub browser: bool,
    pub verdict: Verdict,
    /// Whether it passed, whatever those that it depends on did.
    pub alone: bool,
    /// The first thing that was not as expected.
    pub detail: String,
}

impl Kind {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Required, Self::Optimal, Self::Check].into_iter().find(|kind| kind.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Optimal => "optimal",
            Self::Check => "check",
        }
    }
}

impl Verdict {
    pub fn parse(text: &str) -> Option<Self> {
        VERDICTS.iter().find(|(_, word)| *word == text).map(|(verdict, _)| *verdict)
    }

    pub fn as_str(self) -> &'static str {
        VERDICTS.iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, word)| word)
    }

    fn is_good(self) -> bool {
        matches!(self, Self::Pass | Self::Yes)
    }
}

impl Outcome {
    fn is_surrogate(&self) -> bool {
        self.suite == "surrogate-control"
    }
}

/// Passed of all that were run. `Surrogate-Control` is no part of RFC 9111 and counted by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub required: Share,
    pub optimal: Share,
    pub surrogate: Share,
    pub checks: Share,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// By the rule of cache-tests.fyi: also everything that they depend on.
    pub passed: usize,
    /// Whatever became of what they depend on.
    pub alone: usize,
    pub of: usize,
}

impl Counts {
    pub fn of(outcomes: &[Outcome]) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes.iter().filter(|outcome| !outcome.browser) {
            let share = match (outcome.kind, outcome.is_surrogate()) {
                (Kind::Check, _) => &mut counts.checks,
                (_, true) => &mut counts.surrogate,
                (Kind::Required, false) => &mut counts.required,
                (Kind::Optimal, false) => &mut counts.optimal,
            };
            share.of += 1;
            share.passed += usize::from(outcome.verdict.is_good());
            share.alone += usize::from(outcome.alone);
        }
        counts
    }

    fn shares(&self) -> [Share; 4] {
        [self.required, self.optimal, self.surrogate, self.checks]
    }
}

/// One row of the table: a cache and what it reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub cache: String,
    pub counts: Counts,
}

/// Rows of a table, as [`table`] writes them.
pub fn parse_rows(text: &str) -> Result<Vec<Row>, String> {
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Cache"));
    rows.map(|line| parse_row(line).ok_or_else(|| format!("not a row: {line}"))).collect()
}

fn parse_row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [cache, required, optimal, surrogate, checks] = cells.try_into().ok()?;
    let share = |cell: &str| -> Option<Share> {
        let (passed, rest) = cell.split_once(" (")?;
        let (alone, of) = rest.split_once(") of ")?;
        Some(Share {
            passed: passed.parse().ok()?,
            alone: alone.parse().ok()?,
            of: of.parse().ok()?,
        })
    };
    let counts = Counts {
        required: share(required)?,
        optimal: share(optimal)?,
        surrogate: share(surrogate)?,
        checks: share(checks)?,
    };
    Some(Row { cache: cache.to_owned(), counts })
}

/// The counts of several caches as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Cache | required | optimal | `Surrogate-Control` | checks: yes |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = write!(text, "| {} |", row.cache);
        for Share { passed, alone, of } in row.counts.shares() {
            let _ = write!(text, " {passed} ({alone}) of {of} |");
        }
        text.push('\n');
    }
    text
}

/// A test that is known not to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub verdict: Verdict,
    /// Why that is right, or not yet better.
    pub reason: String,
}

/// Known failures by test.
pub type Failures = BTreeMap<String, Known>;

/// Reads the list: a line has verdict, test and reason; `#` begins a comment.
pub fn parse_failures(text: &str) -> Result<Failures, String> {
    let mut failures = Failures::new();
    for line in
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let mut words = line.splitn(3, char::is_whitespace);
        let (verdict, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let verdict =
            Verdict::parse(verdict).ok_or_else(|| format!("`{verdict}` is no verdict: {line}"))?;
        let reason = words.next().unwrap_or_default().trim().to_owned();
        if failures.insert(id.to_owned(), Known { verdict, reason }).is_some() {
            return Err(format!("`{id}` stands there twice"));
        }
    }
    Ok(failures)
}

/// Writes the list as it is now; reasons are kept, except of those whose verdict has changed.
pub fn render_failures(outcomes: &[Outcome], known: &Failures) -> String {
    let mut text = String::from(
        "# Tests of the npm package `http-cache-tests` that Leno does not pass: verdict, test, reason. Checked by\n\
         # `cargo test -p leno-tests --test http_cache`, which fails for a test that newly fails, for a listed one that\n\
         # passes, and for one without a reason. A check that says `no` is an observation and needs none.\n",
    );
    let mut suite = "";
    for outcome in open(outcomes) {
        if suite != outcome.suite {
            suite = &outcome.suite;
            let _ = write!(text, "\n# {suite}\n");
        }
        let same = known.get(&outcome.id).filter(|known| known.verdict == outcome.verdict);
        let reason = same.map_or("", |known| &known.reason);
        let line = format!("{} {} {reason}", outcome.verdict.as_str(), outcome.id);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn open(outcomes: &[Outcome]) -> impl Iterator<Item = &Outcome> {
    outcomes.iter().filter(|outcome| !outcome.browser && !outcome.verdict.is_good())
}

/// Everything in which the results differ from the list.
pub fn differences(outcomes: &[Outcome], known: &Failures) -> Vec<String> {
    let mut found: Vec<String> =
        outcomes.iter().filter_map(|outcome| difference(outcome, known.get(&outcome.id))).collect();
    let exists = |id: &String| outcomes.iter().any(|outcome| outcome.id == *id);
    let unknown = known.keys().filter(|id| !exists(id));
    found.extend(unknown.map(|id| format!("{id}: listed, but there is no such test")));
    found
}

fn difference(outcome: &Outcome, known: Option<&Known>) -> Option<String> {
    let Outcome { id, verdict, detail, kind, .. } = outcome;
    let (kind, now) = (kind.as_str(), verdict.as_str());
    let good = outcome.browser || verdict.is_good();
    match known {
        None if good => None,
        None => Some(format!("{id} ({kind}): newly `{now}`: {detail}")),
        Some(_) if good => Some(format!("{id} ({kind}): passes; take it off the list")),
        Some(known) if known.verdict != *verdict => {
            Some(format!("{id} ({kind}): was `{}`, is `{now}`: {detail}", known.verdict.as_str()))
        }
        Some(known) if known.reason.is_empty() && *verdict != Verdict::No => {
            Some(format!("{id} ({kind}): `{now}` without a reason: {detail}"))
        }
        Some(_) => None,
    }
}

/// The list of known failures as Markdown, one table for each kind.
pub fn failure_tables(outcomes: &[Outcome], known: &Failures) -> String {
    let mut text = String::new();
    for (kind, title) in [(Kind::Required, "Required"), (Kind::Optimal, "Optimal")] {
        let rows: Vec<&Outcome> = open(outcomes).filter(|outcome| outcome.kind == kind).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "### {title}\n\n| Test | Verdict | Why |\n|---|---|---|\n");
        for outcome in rows {
            let reason = known.get(&outcome.id).map_or("", |known| &known.reason);
            let (id, name) = (&outcome.id, outcome.name.replace('|', "\\|"));
            let reason = reason.replace('|', "\\|");
            let _ = writeln!(text, "| `{id}`: {name} | {} | {reason} |", outcome.verdict.as_str());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
