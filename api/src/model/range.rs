//! Numbers and times that have a range.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use crate::{Path, invalid::Problems, model::duration};

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
