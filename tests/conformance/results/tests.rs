use super::*;

fn outcome(id: &str, suite: &str, kind: Kind, verdict: Verdict) -> Outcome {
    Outcome {
        id: id.to_owned(),
        suite: suite.to_owned(),
        name: format!("Is `{id}` | so?"),
        kind,
        browser: verdict == Verdict::Untested,
        verdict,
        alone: matches!(verdict, Verdict::Pass | Verdict::Yes | Verdict::Dependency),
        detail: "as it is".to_owned(),
    }
}

fn outcomes() -> Vec<Outcome> {
    vec![
        outcome("a", "age", Kind::Required, Verdict::Pass),
        outcome("b", "age", Kind::Required, Verdict::Fail),
        outcome("c", "age", Kind::Required, Verdict::Dependency),
        outcome("d", "vary", Kind::Optimal, Verdict::Suboptimal),
        outcome("e", "vary", Kind::Check, Verdict::No),
        outcome("f", "vary", Kind::Check, Verdict::Yes),
        outcome("g", "vary", Kind::Required, Verdict::Untested),
        outcome("h", "surrogate-control", Kind::Required, Verdict::Pass),
    ]
}

#[test]
fn counts_what_was_run_by_kind() {
    let share = |passed, alone, of| Share { passed, alone, of };
    let counts = Counts::of(&outcomes());
    assert_eq!(counts.shares(), [share(1, 2, 3), share(0, 0, 1), share(1, 1, 1), share(1, 1, 2)]);
    let rows = vec![Row { cache: "A cache 1.0".to_owned(), counts }];
    assert_eq!(parse_rows(&table(&rows)), Ok(rows));
    assert!(parse_rows("| a | b |").is_err());
}

#[test]
fn finds_what_differs_from_the_list() {
    let list = "# a comment\n\nfail b because\ndependency c so\nsuboptimal d not yet\nno e\n";
    let known = parse_failures(list).unwrap();
    assert_eq!(differences(&outcomes(), &known), [""; 0]);
    for (from, to, said) in [
        ("fail b because\n", "", "b (required): newly `fail`: as it is"),
        ("fail b because\n", "fail b\n", "b (required): `fail` without a reason: as it is"),
        ("fail b", "setup b", "b (required): was `setup`, is `fail`: as it is"),
        ("no e\n", "", "e (check): newly `no`: as it is"),
        ("no e\n", "no e\nfail a why\n", "a (required): passes; take it off the list"),
        ("no e\n", "no e\nfail g why\n", "g (required): passes; take it off the list"),
        ("no e\n", "no e\nno z\n", "z: listed, but there is no such test"),
    ] {
        let known = parse_failures(&list.replace(from, to)).unwrap();
        assert_eq!(differences(&outcomes(), &known), [said]);
    }
    assert!(parse_failures("broken b x").is_err());
    assert!(parse_failures("no e\nno e").is_err());
}

#[test]
fn writes_the_list_with_the_reasons_that_still_hold() {
    let known = parse_failures("fail b because of | this\nsetup c so\nno z\n").unwrap();
    let text = render_failures(&outcomes(), &known);
    let lines: Vec<&str> = text.lines().skip_while(|line| line.starts_with("# ")).collect();
    let expected = [
        "",
        "# age",
        "fail b because of | this",
        "dependency c",
        "",
        "# vary",
        "suboptimal d",
        "no e",
    ];
    assert_eq!(lines, expected);
    let known = parse_failures(&text).unwrap();
    assert_eq!(render_failures(&outcomes(), &known), text);
    let tables = failure_tables(&outcomes(), &known);
    assert!(tables.contains("| `b`: Is `b` \\| so? | fail | because of \\| this |\n"), "{tables}");
}
