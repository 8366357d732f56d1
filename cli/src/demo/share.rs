//! Which observed shares chance allows.

/// Standard deviations. A right split fails a check once in some ten million, a wrong one at once.
const DEVIATIONS: f64 = 5.3;
/// Requests that were under way when the weights changed may still count to the other side.
const IN_FLIGHT: f64 = 3.0;

/// From which to which share of `total` draws may be hits, when each hits with `probability`.
pub fn plausible(probability: f64, total: u64) -> (f64, f64) {
    let total = total as f64;
    if total < 1.0 {
        return (0.0, 1.0);
    }
    let deviation = (probability * (1.0 - probability) / total).sqrt();
    let slack = DEVIATIONS * deviation + IN_FLIGHT / total;
    ((probability - slack).max(0.0), (probability + slack).min(1.0))
}

/// Whether `hits` of `total` draws are what `probability` lets one expect.
pub fn is_plausible(probability: f64, hits: u64, total: u64) -> bool {
    let (low, high) = plausible(probability, total);
    let share = hits as f64 / (total as f64).max(1.0);
    total > 0 && (low..=high).contains(&share)
}

/// `10.3 %`.
pub fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / (whole as f64).max(1.0))
}

/// A bar of ten cells.
pub fn bar(part: u64, whole: u64) -> String {
    const CELLS: usize = 20;
    let share = part as f64 / (whole as f64).max(1.0);
    let full = (share * CELLS as f64).round() as usize;
    format!("{}{}", "█".repeat(full.min(CELLS)), "░".repeat(CELLS - full.min(CELLS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_split_passes_and_a_wrong_one_does_not() {
        assert!(is_plausible(0.1, 47, 500));
        assert!(is_plausible(0.5, 230, 500));
        for (probability, hits) in
            [(0.1, 0), (0.1, 250), (0.5, 50), (0.5, 450), (1.0, 480), (0.0, 20)]
        {
            assert!(!is_plausible(probability, hits, 500), "{hits} at {probability}");
        }
    }

    #[test]
    fn certainty_allows_only_what_was_under_way() {
        assert!(is_plausible(1.0, 498, 500));
        assert!(is_plausible(0.0, 2, 500));
        assert!(!is_plausible(0.0, 0, 0), "no traffic proves nothing");
    }

    #[test]
    fn bars_fill_up() {
        assert_eq!(bar(0, 10).matches('█').count(), 0);
        assert_eq!(bar(5, 10).matches('█').count(), 10);
        assert_eq!(bar(10, 10).chars().count(), 20);
    }
}
