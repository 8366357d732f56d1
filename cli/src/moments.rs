//! Points in time, for people: how far away they are.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leno_control_plane::objects::timestamp::{age, parse, rfc3339};
use serde::{Deserialize, Deserializer, de::Error as _};

/// A point in time that is told as Unix seconds or as RFC 3339 has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Told {
            Seconds(u64),
            Text(String),
        }
        match Told::deserialize(deserializer)? {
            Told::Seconds(seconds) => Ok(Self(seconds)),
            Told::Text(text) => parse(&text)
                .map(Self)
                .ok_or_else(|| D::Error::custom(format!("`{text}` is not a time in UTC"))),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(UNIX_EPOCH + Duration::from_secs(self.0)))
    }
}

/// Unix seconds. A clock before 1970 counts as 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `in 23h`, `now`, `5m ago`.
pub fn distance(then: u64, now: u64) -> String {
    match (then.checked_sub(now), now.saturating_sub(then)) {
        (Some(0), _) => "now".to_owned(),
        (Some(ahead), _) => format!("in {}", age(ahead)),
        (None, behind) => format!("{} ago", age(behind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_both_forms_and_printed_in_one() {
        for text in ["1000000", "\"1970-01-12T13:46:40Z\""] {
            let moment: Moment = serde_json::from_str(text).unwrap();
            assert_eq!(
                (moment.0, moment.to_string().as_str()),
                (1_000_000, "1970-01-12T13:46:40Z")
            );
        }
        assert!(serde_json::from_str::<Moment>("\"yesterday\"").is_err());
    }

    #[test]
    fn what_is_ahead_and_what_is_behind_read_differently() {
        assert_eq!(distance(1_000, 1_000), "now");
        assert_eq!(distance(1_090, 1_000), "in 90s");
        assert_eq!(distance(1_000, 87_400), "24h ago");
    }
}
