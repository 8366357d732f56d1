//! What resources were read from, kept for the last good state and for people to look at. Instances of a service
//! differ in a name and an address: of such a text only that is kept, beside the one that it is like. Pure.

use std::sync::Arc;

/// What parts are separated by. JSON has one on either side of every name and every string.
const SEPARATOR: char = '"';

/// A text, as it is or by how it differs from another one.
#[derive(Clone, Debug)]
pub struct Text {
    like: Arc<str>,
    /// The parts of `like` that are others here: their place as a character, then what is there, separated as in the
    /// text itself. `None` when `like` is the text.
    parts: Option<Box<str>>,
}

impl Text {
    /// Keeps `text`, by how it differs from what `other` is like where that is shorter.
    pub fn like(text: &str, other: &Self) -> Self {
        match differences(text, &other.like) {
            Some(parts) => Self { like: other.like.clone(), parts: Some(parts.into()) },
            None => text.into(),
        }
    }

    /// The same by how it differs from what `other` is like, where that is shorter and it is not kept by differences
    /// already.
    pub fn unless_like(self, other: &Self) -> Self {
        match self.parts {
            None => Self::like(&self.like, other),
            Some(_) => self,
        }
    }

    /// Its value; `None` when it is not JSON.
    pub fn value(&self) -> Option<serde_json::Value> {
        let mut whole = String::new();
        self.write(&mut whole);
        serde_json::from_str(&whole).ok()
    }

    /// Appends the whole text.
    pub fn write(&self, to: &mut String) {
        let Some(parts) = &self.parts else { return to.push_str(&self.like) };
        let mut parts = parts.split(SEPARATOR).filter_map(place).peekable();
        for (at, part) in (0..).zip(self.like.split(SEPARATOR)) {
            if at > 0 {
                to.push(SEPARATOR);
            }
            to.push_str(parts.next_if(|(place, _)| *place == at).map_or(part, |(_, part)| part));
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.like, &other.like) {
            return self.parts == other.parts;
        }
        let whole = |text: &Self| {
            let mut whole = String::new();
            text.write(&mut whole);
            whole
        };
        whole(self) == whole(other)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { like: text.into(), parts: None }
    }
}

/// How `text` differs from `like`; `None` when they have not the same form, or too little in common.
fn differences(text: &str, like: &str) -> Option<String> {
    let mut differences = String::new();
    let (mut ours, mut theirs) = (text.split(SEPARATOR), like.split(SEPARATOR));
    for at in 0.. {
        let (ours, theirs) = match (ours.next(), theirs.next()) {
            (Some(ours), Some(theirs)) => (ours, theirs),
            (None, None) => break,
            _ => return None,
        };
        if ours != theirs {
            if !differences.is_empty() {
                differences.push(SEPARATOR);
            }
            differences.push(character(at)?);
            differences.push_str(ours);
        }
    }
    (differences.len() < text.len() / 2).then_some(differences)
}

/// The character that stands for a place: none that separates.
fn character(place: u32) -> Option<char> {
    char::from_u32(place.checked_add(u32::from(SEPARATOR) + 1)?)
}

fn place(part: &str) -> Option<(u32, &str)> {
    let first = part.chars().next()?;
    let place = u32::from(first).checked_sub(u32::from(SEPARATOR) + 1)?;
    Some((place, &part[first.len_utf8()..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &Text) -> String {
        let mut whole = String::new();
        text.write(&mut whole);
        whole
    }

    #[test]
    fn of_a_sibling_only_the_differences_are_kept() {
        let workload = |name: &str, address: &str| {
            format!(
                r#"{{"kind":"Workload","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{{"address":"{address}"}}}}"#
            )
        };
        let first = Text::from(&*workload("orders-1", "10.0.0.1"));
        let second = Text::like(&workload("orders-2", "10.0.0.2"), &first);
        let third = Text::like(&workload("orders-3", "10.0.0.1"), &second);
        assert!(Arc::ptr_eq(&first.like, &third.like), "of the same, not of each other");
        assert!(third.parts.as_ref().unwrap().len() < 12, "{third:?}");
        assert_eq!(whole(&second), workload("orders-2", "10.0.0.2"));
        assert_eq!(whole(&third), workload("orders-3", "10.0.0.1"));
        assert!(Text::like("{}", &first).parts.is_none());
    }

    proptest! {
        /// Whatever a text is like, it comes back as it was.
        #[test]
        fn texts_come_back(
            one in "([a-c\"]|é){0,24}", other in "([a-c\"]|é){0,24}", long in "[a-z\"]{0,200}",
        ) {
            let (text, like) = (format!("{long}{one}"), format!("{long}{other}"));
            let like = Text::from(&*like);
            prop_assert_eq!(whole(&Text::like(&text, &like)), text);
            prop_assert_eq!(whole(&Text::like("", &like)), "");
        }
    }
}
