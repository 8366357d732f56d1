//! Which fields are masked: `email` wherever it is, `card.number` where the last two names are these. Arrays do
//! not count, and names are compared exactly.

/// Fields, each as its names from the innermost out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    fields: Vec<Vec<Vec<u8>>>,
    longest: usize,
}

/// Fields that may be configured. Each is compared with every name of a response.
const FIELDS: usize = 256;

impl Fields {
    /// Reads fields.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() || texts.len() > FIELDS {
            return Err(format!("fields: name at least one field, and at most {FIELDS}"));
        }
        let mut fields = Vec::with_capacity(texts.len());
        for text in texts {
            let names: Vec<_> = text.rsplit('.').map(|name| name.as_bytes().to_vec()).collect();
            if names.iter().any(Vec::is_empty) {
                return Err(format!(
                    "fields: `{text}` is no field: write `email` or `card.number`"
                ));
            }
            fields.push(names);
        }
        let longest = fields.iter().flatten().map(Vec::len).max().unwrap_or(0);
        Ok(Self { fields, longest })
    }

    /// Bytes of the longest name: a longer one need not be known to its end.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Whether the value at a path is to be masked; `path` gives its names from the innermost out.
    pub fn contain<'a>(&self, path: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
        self.fields.iter().any(|names| {
            let mut path = path.clone();
            names.iter().all(|name| path.next() == Some(name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(fields: &[&str], path: &[&str]) -> bool {
        let fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
        Fields::new(&fields).unwrap().contain(path.iter().rev().map(|name| name.as_bytes()))
    }

    #[test]
    fn the_last_names_count() {
        assert!(contains(&["email"], &["email"]));
        assert!(contains(&["email"], &["user", "email"]));
        assert!(contains(&["card.number"], &["user", "card", "number"]));
        assert!(!contains(&["card.number"], &["number"]));
        assert!(!contains(&["card.number"], &["card", "x", "number"]));
        assert!(!contains(&["email"], &["email", "domain"]));
        assert!(!contains(&["email"], &["Email"]));
        assert!(!contains(&["email"], &[]));
    }
}
