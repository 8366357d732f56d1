//! Numbers, times and amounts that have a range.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use crate::{Path, invalid::Problems, model::duration, spec::quantity::Bytes};

/// Reads the fields of one object. What is out of its range is noted; the default then stands in for it, so that
/// reading goes on to the next problem.
pub(crate) struct Fields<'a, 'p> {
    pub(crate) at: Path<'a>,
    pub(crate) problems: &'p mut Problems,
}

impl<'a, 'p> Fields<'a, 'p> {
    pub(crate) fn new(at: Path<'a>, problems: &'p mut Problems) -> Self {
        Self { at, problems }
    }

    /// Notes what is wrong with a field.
    pub(crate) fn problem(&mut self, field: &str, message: impl Into<String>) {
        self.problems.add(self.at.field(field), message);
    }

    /// A whole number; `default`, moved into the range, where there is none.
    pub(crate) fn number<T: TryFrom<i64> + PartialOrd + Copy + Display>(
        &mut self,
        field: &str,
        raw: Option<i64>,
        range: RangeInclusive<T>,
        default: T,
    ) -> T {
        let Some(raw) = raw else { return into(range, default) };
        let good = T::try_from(raw).ok().filter(|number| range.contains(number));
        good.unwrap_or_else(|| {
            self.problem(field, format!("must be {} to {}", range.start(), range.end()));
            into(range, default)
        })
    }

    /// A number; `default` where there is none.
    pub(crate) fn decimal(
        &mut self,
        field: &str,
        raw: Option<f64>,
        range: RangeInclusive<f64>,
        default: f64,
    ) -> f64 {
        let Some(number) = raw else { return default };
        if range.contains(&number) {
            return number;
        }
        self.problem(field, format!("must be {} to {}", range.start(), range.end()));
        default
    }

    /// A time; `default`, moved into the range, where there is none.
    pub(crate) fn duration(
        &mut self,
        field: &str,
        raw: Option<&str>,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(raw) = raw else { return into(range, default) };
        let Some(read) = self.problems.take(&self.at.field(field), duration::parse(raw)) else {
            return into(range, default);
        };
        if range.contains(&read) {
            return read;
        }
        let [least, most] = [range.start(), range.end()].map(|edge| duration::format(*edge));
        self.problem(field, format!("must be {least} to {most}"));
        into(range, default)
    }

    /// Bytes, from none to `most`; `default` where nothing is said.
    pub(crate) fn bytes(
        &mut self,
        field: &str,
        raw: Option<&Bytes>,
        most: u32,
        default: u32,
    ) -> u32 {
        let Some(raw) = raw else { return default };
        let number = match raw {
            Bytes::Number(number) => u32::try_from(*number).ok(),
            Bytes::Text(text) => parse_bytes(text),
        };
        number.filter(|number| *number <= most).unwrap_or_else(|| {
            let message = format!("must be 0 to {most} bytes, such as 65536, `64Ki` or `1Mi`");
            self.problem(field, message);
            default
        })
    }

    /// Numbers of a list that is there: `count` of them, each within `range`. The result is sorted and without doubles.
    pub(crate) fn numbers(
        &mut self,
        field: &str,
        raw: Option<Vec<i64>>,
        count: RangeInclusive<usize>,
        range: RangeInclusive<u16>,
    ) -> Vec<u16> {
        let Some(raw) = raw else { return Vec::new() };
        self.count(field, raw.len(), count);
        let here = self.at.field(field);
        let mut numbers = Vec::new();
        for (i, raw) in raw.into_iter().enumerate() {
            match u16::try_from(raw).ok().filter(|number| range.contains(number)) {
                Some(number) => numbers.push(number),
                None => {
                    let message = format!("must be {} to {}", range.start(), range.end());
                    self.problems.add(here.index(i), message);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Whether a list has so many entries.
    pub(crate) fn count(&mut self, field: &str, count: usize, allowed: RangeInclusive<usize>) {
        if !allowed.contains(&count) {
            let (least, most) = (allowed.start(), allowed.end());
            self.problem(field, format!("has {count} entries; {least} to {most} are allowed"));
        }
    }

    /// Whether exactly one of these fields is set.
    pub(crate) fn exactly_one(&mut self, fields: &[(&str, bool)]) {
        if fields.iter().filter(|(_, set)| *set).count() != 1 {
            let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
            self.problems.add(self.at, format!("set exactly one of {}", names.join(", ")));
        }
    }
}

/// Unlike `clamp` it does not panic where the range is empty.
fn into<T: PartialOrd + Copy>(range: RangeInclusive<T>, number: T) -> T {
    let (least, most) = (*range.start(), *range.end());
    if number < least {
        least
    } else if number > most {
        most
    } else {
        number
    }
}

fn parse_bytes(text: &str) -> Option<u32> {
    let (digits, unit) = match (text.strip_suffix("Ki"), text.strip_suffix("Mi")) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (text, 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u32>().ok().filter(|_| plain)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bytes_as_kubernetes_writes_them() {
        let rows = [
            ("0", Some(0)),
            ("65536", Some(65_536)),
            ("64Ki", Some(65_536)),
            ("16Mi", Some(16 << 20)),
            ("4095Mi", Some(4095 << 20)),
            ("4096Mi", None),
            ("", None),
            ("Ki", None),
            ("+1", None),
            ("-1Ki", None),
            ("1.5Mi", None),
            ("1Gi", None),
            ("1 Ki", None),
        ];
        for (text, bytes) in rows {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn defaults_move_into_a_range_that_other_fields_set() {
        let mut problems = Problems::default();
        let mut fields = Fields::new(Path::root("spec"), &mut problems);
        assert_eq!(fields.number("a", None, 30..=50_u32, 20), 30);
        assert_eq!(fields.number("a", None, 1..=10_u32, 20), 10);
        let range = Duration::from_secs(90)..=Duration::from_secs(3600);
        let read = fields.duration("b", None, range, Duration::from_secs(60));
        assert_eq!(read, Duration::from_secs(90));
        assert!(problems.finish(Some(())).is_ok());
    }
}
