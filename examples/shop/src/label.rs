//! Names of instances, versions, users: short, and safe in a header, a path and a log line.

use std::fmt;
use std::str::FromStr;

const MAX_LENGTH: usize = 63;

/// 1 to 63 letters, digits, `-`, `_` or `.`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Label {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match text.len() {
            1..=MAX_LENGTH if text.bytes().all(allowed) => Ok(Self(text)),
            _ => {
                Err(format!("{text:?} must be 1 to {MAX_LENGTH} letters, digits, '-', '_' or '.'"))
            }
        }
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
