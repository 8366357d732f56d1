//! YAML documents as JSON values, with the line of every field.
//!
//! YAML 1.2 core schema: `yes` and `on` are strings. Bounded against hostile input: depth, node count
//! (which also bounds what aliases can multiply), no custom tags, no duplicate keys.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

use crate::{Invalid, Problem, Resource};

/// Deepest nesting that any resource has is about 15.
const MAX_DEPTH: usize = 64;
/// Nodes in one document, those that aliases repeat included.
const MAX_NODES: usize = 200_000;

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it says.
    pub value: Value,
    /// 1-based line of each path (`spec.rules[0].name`), and of the whole document under the empty path.
    pub lines: HashMap<String, u32>,
}

impl Document {
    /// The resource it holds.
    ///
    /// # Errors
    /// Every problem, each with its line.
    pub fn resource(&self) -> Result<Resource, Invalid> {
        Resource::from_json(self.value.clone()).map_err(|invalid| invalid.locate(&self.lines))
    }
}

/// Reads every document in `text`; empty ones are left out. JSON is YAML, so it is read too.
///
/// # Errors
/// The first thing that is not YAML, with its line. Documents before it are lost with it: a file is read whole
/// or not at all.
pub fn documents(text: &str) -> Result<Vec<Document>, Problem> {
    let mut loader =
        Loader { events: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    while let Some((event, span)) = loader.next()? {
        if matches!(event, Event::DocumentStart(_)) {
            loader.anchors.clear();
            loader.nodes = 0;
            let mut lines = HashMap::new();
            lines.insert(String::new(), line(&span));
            let Some((first, at)) = loader.next()? else { break };
            lines.insert(String::new(), line(&at));
            let value = loader.node(first, &at, "", 0, &mut lines)?;
            if !value.is_null() {
                documents.push(Document { value, lines });
            }
        }
    }
    Ok(documents)
}

/// Reads every resource in `text`, and the problems of those that cannot be used.
pub fn resources(text: &str) -> (Vec<Resource>, Vec<Problem>) {
    match documents(text) {
        Err(problem) => (Vec::new(), vec![problem]),
        Ok(documents) => {
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            for document in documents {
                match document.resource() {
                    Ok(resource) => good.push(resource),
                    Err(invalid) => bad.extend(invalid.problems),
                }
            }
            (good, bad)
        }
    }
}

struct Loader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Problem> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                let line = u32::try_from(error.marker().line()).ok();
                Err(Problem {
                    path: String::new(),
                    message: format!("is not YAML: {}", error.info()),
                    line,
                })
            }
        }
    }

    fn node(
        &mut self,
        event: Event<'a>,
        span: &Span,
        path: &str,
        depth: usize,
        lines: &mut HashMap<String, u32>,
    ) -> Result<Value, Problem> {
        if depth > MAX_DEPTH {
            return Err(wrong(span, path, format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        let before = self.nodes;
        self.spend(1, span, path)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (scalar(&text, style, tag.as_deref(), span, path)?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(path, depth, lines)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(path, depth, lines)?, anchor),
            Event::Alias(anchor) => {
                let (value, cost) = self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    wrong(span, path, "refers to an anchor that is not complete yet".to_owned())
                })?;
                self.spend(cost, span, path)?;
                (value, 0)
            }
            _ => return Err(wrong(span, path, "is not YAML: unexpected end".to_owned())),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), self.nodes - before));
        }
        Ok(value)
    }

    fn sequence(
        &mut self,
        path: &str,
        depth: usize,
        lines: &mut HashMap<String, u32>,
    ) -> Result<Value, Problem> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            let here = format!("{path}[{}]", items.len());
            lines.insert(here.clone(), line(&span));
            items.push(self.node(event, &span, &here, depth + 1, lines)?);
        }
        Ok(Value::Array(items))
    }

    fn mapping(
        &mut self,
        path: &str,
        depth: usize,
        lines: &mut HashMap<String, u32>,
    ) -> Result<Value, Problem> {
        let mut fields = Map::new();
        while let Some((event, span)) = self.next()? {
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    return Err(wrong(
                        &span,
                        path,
                        "has a key that is not a plain word".to_owned(),
                    ));
                }
            };
            let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            lines.insert(here.clone(), line(&span));
            let Some((event, at)) = self.next()? else { break };
            let value = self.node(event, &at, &here, depth + 1, lines)?;
            if fields.insert(key, value).is_some() {
                return Err(wrong(&span, &here, "stands twice".to_owned()));
            }
        }
        Ok(Value::Object(fields))
    }

    fn spend(&mut self, nodes: usize, span: &Span, path: &str) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(wrong(span, path, format!("the document has more than {MAX_NODES} nodes")));
        }
        Ok(())
    }
}

fn line(span: &Span) -> u32 {
    u32::try_from(span.start.line()).unwrap_or(u32::MAX)
}

fn wrong(span: &Span, path: &str, message: String) -> Problem {
    Problem { path: path.to_owned(), message, line: Some(line(span)) }
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    span: &Span,
    path: &str,
) -> Result<Value, Problem> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
            Ok(Value::String(text.to_owned()))
        }
        Some(tag) if !tag.is_yaml_core_schema() => Err(wrong(
            span,
            path,
            format!("has the tag `{}{}`, which means nothing here", tag.handle, tag.suffix),
        )),
        _ if style != ScalarStyle::Plain => Ok(Value::String(text.to_owned())),
        _ => Ok(plain(text)),
    }
}

/// The core schema of YAML 1.2, section 10.3.2.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return Value::String(text.to_owned());
    }
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok().map(Value::from);
    let number = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(hex), _) => radix(hex, 16),
        (_, Some(octal)) => radix(octal, 8),
        _ => text.parse::<i64>().ok().map(Value::from).or_else(|| {
            let float = text.parse::<f64>().ok()?;
            Number::from_f64(float).map(Value::Number)
        }),
    };
    number.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests;
