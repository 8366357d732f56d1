//! Lengths of time as configurations write them: "500ms", "30s", "5m", "1h".

use std::time::Duration;

use serde::Deserialize;

/// A length of time.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub struct Period(Duration);

/// The longest that means anything here.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Period {
    /// Seconds, for defaults.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As the standard library has it.
    pub fn duration(self) -> Duration {
        self.0
    }

    /// Nanoseconds.
    pub fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Milliseconds.
    pub fn milliseconds(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no length of time: write 500ms, 30s, 5m or 1h");
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let period = Duration::from_millis(number.saturating_mul(milliseconds));
        match period {
            Duration::ZERO => Err(format!("`{text}`: must be longer than nothing")),
            _ if period > LONGEST => Err(format!("`{text}` is longer than a year")),
            _ => Ok(Self(period)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units_and_nothing_else() {
        for (text, milliseconds) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            let period = Period::try_from(text.to_owned()).unwrap();
            assert_eq!(period.milliseconds(), milliseconds, "{text}");
        }
        for wrong in
            ["", "5", "s", "0s", "-1s", "1.5s", "1 s", "1d", "99999999999999999999s", "9000h"]
        {
            assert!(Period::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
