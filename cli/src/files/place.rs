//! Places in files.

use std::{collections::HashMap, fmt, sync::Arc};

use leno_api::{Invalid, Problem, yaml};
use serde_json::Value;

/// Something to say about a place in a file; prints as `file:line: path: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub file: Arc<str>,
    /// 1-based.
    pub line: Option<u32>,
    /// `spec.rules[0].name`; empty for the whole resource.
    pub path: String,
    pub message: String,
}

impl Located {
    /// A problem that knows its line already.
    pub fn of(file: &Arc<str>, problem: &Problem) -> Self {
        Self {
            file: file.clone(),
            line: problem.line,
            path: problem.path.clone(),
            message: problem.message.clone(),
        }
    }

    /// Finds the line of `path`, or of the nearest field around it that was written.
    pub fn new(file: &Arc<str>, lines: &HashMap<String, u32>, path: &str, message: &str) -> Self {
        let located = Invalid::one(path, message).locate(lines);
        let line = located.problems.first().and_then(|problem| problem.line);
        Self { file: file.clone(), line, path: path.to_owned(), message: message.to_owned() }
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What `kubectl get -o yaml` writes for several objects, as the documents it stands for.
pub fn expand_list(document: yaml::Document) -> Vec<yaml::Document> {
    let is_list = document.value.get("kind").and_then(Value::as_str) == Some("List");
    let items = document.value.get("items").and_then(Value::as_array);
    let (true, Some(items)) = (is_list, items) else { return vec![document] };
    let count = items.len();
    // One pass over the lines, not one per item: a list can be long.
    let mut lines: Vec<HashMap<String, u32>> = vec![HashMap::new(); count];
    for (path, line) in &document.lines {
        let Some((index, rest)) = path.strip_prefix("items[").and_then(|rest| rest.split_once(']'))
        else {
            continue;
        };
        if let Some(own) = index.parse::<usize>().ok().and_then(|index| lines.get_mut(index)) {
            own.insert(rest.strip_prefix('.').unwrap_or(rest).to_owned(), *line);
        }
    }
    items
        .iter()
        .zip(lines)
        .map(|(value, lines)| yaml::Document { value: value.clone(), lines })
        .collect()
}
