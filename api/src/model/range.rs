//! Numbers, times and amounts that have a range.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use crate::{
    Path,
    invalid::Problems,
    model::{duration, quantity},
    spec::quantity::Bytes,
};

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

    /// Bytes; `default`, moved into the range, where nothing is said.
    pub(crate) fn bytes<T: TryFrom<u64> + Into<u64> + PartialOrd + Copy>(
        &mut self,
        field: &str,
        raw: Option<&Bytes>,
        range: RangeInclusive<T>,
        default: T,
    ) -> T {
        let Some(raw) = raw else { return into(range, default) };
        let read = match raw {
            // What is below zero is below every range.
            Bytes::Number(number) => Ok(u64::try_from(*number).ok()),
            Bytes::Text(text) => quantity::parse(text).map(Some),
        };
        let Some(read) = self.problems.take(&self.at.field(field), read) else {
            return into(range, default);
        };
        let number = read.and_then(|number| T::try_from(number).ok());
        number.filter(|number| range.contains(number)).unwrap_or_else(|| {
            let [least, most] =
                [range.start(), range.end()].map(|edge| quantity::format((*edge).into()));
            self.problem(field, format!("must be {least} to {most} bytes"));
            into(range, default)
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

    /// Refuses those of `fields` that are there, beside a switch that takes their effect.
    pub(crate) fn nothing_beside(&mut self, switch: &str, fields: &[(&str, bool)]) {
        for (field, _) in fields.iter().filter(|(_, set)| *set) {
            self.problem(field, format!("has no effect beside `{switch}`; keep one of them"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_unit() {
        let number = |number| Bytes::Number(number);
        let text = |text: &str| Bytes::Text(text.to_owned());
        let range = "must be 1Ki to 4Gi bytes";
        let rows = [
            (number(1024), Ok(1024)),
            (text("1Ki"), Ok(1024)),
            (text("65536"), Ok(65_536)),
            (text("64k"), Ok(64_000)),
            (text("4Gi"), Ok(4 << 30)),
            (number(1023), Err(range)),
            (number(-1), Err(range)),
            (text("5Gi"), Err(range)),
            (text("1.5Mi"), Err("is not a number of bytes")),
        ];
        for (raw, expected) in rows {
            let mut problems = Problems::default();
            let mut fields = Fields::new(Path::root("spec"), &mut problems);
            let read = fields.bytes("a", Some(&raw), 1024..=4_u64 << 30, 2048);
            match (problems.finish(Some(read)), expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, expected, "{raw:?}"),
                (Err(found), Err(expected)) => {
                    let found = found.to_string();
                    assert!(found.contains(expected) && found.contains("spec.a"), "{found}");
                }
                other => panic!("{raw:?}: {other:?}"),
            }
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
