//! Where in a resource something stands: `spec.rules[0].backendRefs[1].weight`.

use std::fmt;

/// A path built while walking down; it allocates only when it is printed.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Field(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// A top-level field.
    pub const fn root(field: &'a str) -> Self {
        Self { parent: None, segment: Segment::Field(field) }
    }

    /// A field below `self`.
    pub const fn field(&'a self, field: &'a str) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Field(field) }
    }

    /// An element of the list at `self`.
    pub const fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_fields_and_indices() {
        let spec = Path::root("spec");
        let rules = spec.field("rules");
        let rule = rules.index(0);
        assert_eq!(rule.field("name").to_string(), "spec.rules[0].name");
    }
}
