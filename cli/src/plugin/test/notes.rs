//! What happened on the desk, in order, for people.

use std::{collections::BTreeMap, time::Duration};

use leno_wasm_host::{Headers, HttpCallResponse, LogLevel};

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Note {
    /// An instance started and took its configuration.
    Started {
        took: Duration,
        memory: usize,
    },
    /// The plugin was called.
    Callback(Callback),
    /// Headers that it changed: `+ name: value`, `- name: value`.
    Headers(Vec<String>),
    /// It changed a body: bytes before and after.
    Body {
        before: usize,
        after: usize,
    },
    /// It logged a line.
    Log(LogLevel, String),
    /// It called a service.
    Call {
        what: String,
        headers: Headers,
        timeout: Duration,
    },
    /// A service answered.
    Answer {
        status: String,
        headers: Headers,
        body: String,
    },
    GrpcAnswer {
        status: u32,
    },
    /// It ended a gRPC call.
    Ended(u32),
    /// It asked for something that the desk does not have.
    Refused(String),
    /// It answered the request itself.
    Local {
        status: u32,
    },
    /// Something that the proxy does by itself.
    Proxy(String),
    /// It broke.
    Fault(String),
}

/// A call of the plugin.
#[derive(Clone, Debug)]
pub struct Callback {
    pub name: &'static str,
    pub took: Duration,
    pub memory: usize,
    /// What it wants: `pause`, or nothing worth telling.
    pub action: Option<&'static str>,
    /// How often it was called in a row.
    pub times: usize,
}

/// What happened, and what all of it took.
#[derive(Debug, Default)]
pub struct Notes {
    list: Vec<Note>,
    figures: BTreeMap<&'static str, Figures>,
}

/// What one callback took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub calls: u64,
    pub total: Duration,
    pub longest: Duration,
    pub memory: usize,
}

impl Notes {
    pub fn add(&mut self, note: Note) {
        self.list.push(note);
    }

    /// A callback begins; what it does is noted after it. Timers in a row are one note.
    pub fn begin(&mut self, name: &'static str) -> usize {
        match self.list.last_mut() {
            Some(Note::Callback(last)) if last.name == name && name == "proxy_on_tick" => {
                last.times += 1;
            }
            _ => self.list.push(Note::Callback(Callback {
                name,
                took: Duration::ZERO,
                memory: 0,
                action: None,
                times: 1,
            })),
        }
        self.list.len() - 1
    }

    /// The callback at `place` ended.
    pub fn end(&mut self, place: usize, took: Duration, memory: usize) {
        let Some(Note::Callback(callback)) = self.list.get_mut(place) else { return };
        callback.took += took;
        callback.memory = memory;
        let figures = self.figures.entry(callback.name).or_default();
        figures.calls += 1;
        figures.total += took;
        figures.longest = figures.longest.max(took);
        figures.memory = figures.memory.max(memory);
    }

    /// What the callback that was noted last wants.
    pub fn wants(&mut self, action: &'static str) {
        let callback = self.list.iter_mut().rev().find_map(|note| match note {
            Note::Callback(callback) => Some(callback),
            _ => None,
        });
        if let Some(callback) = callback {
            callback.action = Some(action);
        }
    }

    /// What happened since this was last asked.
    pub fn take(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.list)
    }

    /// What every callback took, by its name.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, Figures)> {
        self.figures.iter().map(|(name, figures)| (*name, *figures))
    }
}

impl Note {
    /// The answer to an HTTP call.
    pub fn answer(response: &HttpCallResponse) -> Self {
        let (status, headers): (Vec<_>, Vec<_>) =
            response.headers.iter().cloned().partition(|(name, _)| name == b":status");
        let status = status.first().map(|(_, value)| text(value)).unwrap_or_default();
        Self::Answer { status, headers, body: text(&response.body) }
    }
}

/// What changed from one list of headers to the other.
pub fn changes(before: &Headers, after: &Headers) -> Vec<String> {
    let missing = |from: &Headers, to: &Headers, sign: char| {
        let mut left = to.clone();
        let gone = |pair: &&(Vec<u8>, Vec<u8>)| match left.iter().position(|other| other == *pair) {
            Some(at) => {
                left.remove(at);
                false
            }
            None => true,
        };
        let line =
            |(name, value): &(Vec<u8>, Vec<u8>)| format!("{sign} {}: {}", text(name), text(value));
        from.iter().filter(gone).map(line).collect::<Vec<_>>()
    };
    let mut all = missing(before, after, '-');
    all.extend(missing(after, before, '+'));
    all
}

/// Bytes as text that stays on its line.
pub fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_what_differs() {
        let of = |pairs: &[(&str, &str)]| -> Headers {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let before = of(&[("a", "1"), ("b", "2"), ("b", "2")]);
        let after = of(&[("b", "2"), ("a", "1"), ("a", "3")]);
        assert_eq!(changes(&before, &after), ["- b: 2", "+ a: 3"]);
        assert!(changes(&before, &before).is_empty());
    }

    #[test]
    fn timers_in_a_row_are_one_note() {
        let mut notes = Notes::default();
        for name in ["proxy_on_tick", "proxy_on_tick", "proxy_on_log", "proxy_on_tick"] {
            let place = notes.begin(name);
            notes.end(place, Duration::from_micros(2), 10);
        }
        let figures: BTreeMap<_, _> = notes.figures().collect();
        assert_eq!(figures["proxy_on_tick"].calls, 3);
        assert_eq!(figures["proxy_on_tick"].total, Duration::from_micros(6));
        let times = notes.take().into_iter().map(|note| match note {
            Note::Callback(callback) => callback.times,
            _ => 0,
        });
        assert_eq!(times.collect::<Vec<_>>(), [2, 1, 1]);
    }
}
