//! The arithmetic of rounds: medians, spreads and ratios that hold on a shared machine.
//!
//! A ratio is taken within a round and only then the median over rounds: what slows the machine for
//! ten seconds slows both programs of that round, and cancels. The ratio of two medians would not.

use serde::Serialize;

/// A median with the smallest and largest value beside it. With the five rounds one can afford,
/// quartiles would suggest a precision that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// The spread of `values`, or nothing where there are none.
pub fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        *sorted.get(middle)?
    } else {
        (sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0
    };
    Some(Spread { median, low, high })
}

/// The spread of `subject / reference`, round by round; rounds that lack either, or whose reference
/// is zero, are left out.
pub fn ratio(subject: &[Option<f64>], reference: &[Option<f64>]) -> Option<Spread> {
    spread(subject.iter().zip(reference).filter_map(|(subject, reference)| {
        let (subject, reference) = ((*subject)?, (*reference)?);
        (reference != 0.0).then(|| subject / reference)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(spread([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(spread([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, low: 1.0, high: 4.0 }));
        assert_eq!(spread([]), None);
    }

    #[test]
    fn values_that_are_no_numbers_do_not_count() {
        assert_eq!(spread([f64::NAN, 5.0]), Some(Spread { median: 5.0, low: 5.0, high: 5.0 }));
    }

    #[test]
    fn a_slow_round_cancels_in_the_ratio() {
        // The machine was twice as slow in the second round: the ratio of every round is 2.
        let subject = [Some(20.0), Some(40.0), Some(20.0)];
        let reference = [Some(10.0), Some(20.0), Some(10.0)];
        assert_eq!(ratio(&subject, &reference), Some(Spread { median: 2.0, low: 2.0, high: 2.0 }));
    }

    #[test]
    fn rounds_without_both_values_are_left_out() {
        let subject = [Some(30.0), None, Some(10.0)];
        let reference = [Some(10.0), Some(10.0), Some(0.0)];
        assert_eq!(ratio(&subject, &reference), Some(Spread { median: 3.0, low: 3.0, high: 3.0 }));
        assert_eq!(ratio(&[None], &[Some(1.0)]), None);
    }
}
