//! Everything that is wrong with a resource, each with its place.

use std::{collections::HashMap, fmt};

use crate::Path;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where: `spec.rules[0].backendRefs[1].weight`; empty for the whole document.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// 1-based line in the file it came from, where it came from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// A resource that cannot be used, with every problem found (at least one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// In the order in which the fields stand.
    pub problems: Vec<Problem>,
}

impl Invalid {
    /// A single problem at `path`.
    pub fn one(path: impl fmt::Display, message: impl Into<String>) -> Self {
        let problem = Problem { path: path.to_string(), message: message.into(), line: None };
        Self { problems: vec![problem] }
    }

    /// Fills in lines: each problem gets the line of its path or of the nearest parent that has one.
    pub fn locate(mut self, lines: &HashMap<String, u32>) -> Self {
        for problem in &mut self.problems {
            problem.line = nearest_line(&problem.path, lines);
        }
        self
    }
}

/// The line of `path`, or of its closest ancestor in `lines`.
pub(crate) fn nearest_line(path: &str, lines: &HashMap<String, u32>) -> Option<u32> {
    let mut at = path;
    loop {
        if let Some(line) = lines.get(at) {
            return Some(*line);
        }
        match at.rfind(['.', '[']) {
            Some(cut) => at = &at[..cut],
            None => return lines.get("").copied(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Collects problems while a resource is read, so that a user sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// More than a screenful helps nobody, and a hostile document must not grow the answer.
    const MAX: usize = 50;

    pub(crate) fn add(&mut self, path: impl fmt::Display, message: impl Into<String>) {
        if self.0.len() < Self::MAX {
            let path = path.to_string();
            self.0.push(Problem { path, message: message.into(), line: None });
        }
    }

    /// `Some` when `result` is good; otherwise the error is noted at `path`.
    pub(crate) fn take<T, E: fmt::Display>(
        &mut self,
        path: &Path<'_>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.add(path, error.to_string())).ok()
    }

    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Invalid> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Invalid { problems: self.0 }),
        }
    }
}
