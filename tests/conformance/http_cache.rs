//! The public suite for HTTP caches, the one behind cache-tests.fyi, against the sidecar as a process.
//!
//! - [`suite`] installs and runs it, [`results`] judges and counts, [`page`] is `docs/http-cache-tests.md`,
//!   [`peers`] measures other caches for its table.
//! - `http_cache/failures.txt` has every test that Leno does not pass, with the reason. The page is made from it.
//!
//! After a change: `cargo test -p leno-tests --test http_cache accept -- --ignored` writes list and page as they are
//! now; what has no reason yet still fails. To see one test, with everything on the wire on both sides:
//! `CACHE_TEST=vary-match cargo test -p leno-tests --test http_cache explain -- --ignored --nocapture`.

#[cfg(test)]
#[expect(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
#[path = "../e2e/client.rs"]
mod client;
#[cfg(test)]
#[expect(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
#[path = "../e2e/mesh.rs"]
mod mesh;
#[cfg(test)]
mod page;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod results;
#[cfg(test)]
mod suite;

#[cfg(test)]
use {
    mesh::{Mesh, Proxy},
    results::{Counts, Outcome, Verdict, differences, parse_failures, render_failures},
    std::{env, fs, path::PathBuf},
    suite::{Choice, Suite},
    tokio::runtime::Runtime,
};

/// What callers say to the sidecar.
#[cfg(test)]
const HOST: &str = "suite.default";

#[cfg(test)]
fn run(only: Option<&str>) -> Vec<Outcome> {
    let runtime = Runtime::new().unwrap();
    let sidecar = |port| {
        let proxy: Proxy = runtime.block_on(mesh(port).start());
        let base = format!("http://{}", proxy.outbound);
        (proxy, base)
    };
    Suite::install().run(Choice { host: Some(HOST), only }, sidecar)
}

#[cfg(test)]
fn mesh(port: u16) -> Mesh {
    Mesh::default()
        .service("suite", "http", &[([127, 0, 0, 1], port).into()])
        .arguments(&["--workers", "2"])
}

#[cfg(test)]
fn failures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance/http_cache/failures.txt")
}

#[test]
fn passes_what_it_passed_before() {
    let outcomes = run(None);
    println!("{}", results::table(&[page::own_row(Counts::of(&outcomes))]));
    let known = parse_failures(&fs::read_to_string(failures()).unwrap()).unwrap();
    let differences = differences(&outcomes, &known);
    let number = differences.len();
    assert!(differences.is_empty(), "{number} differences:\n{}", differences.join("\n"));
    let page = fs::read_to_string(page::path()).unwrap();
    let current = page::render(&outcomes, &known) == page;
    assert!(current, "docs/http-cache-tests.md is out of date; `accept` writes it");
}

/// Makes the list and the page say what is so now.
#[test]
#[ignore = "writes files of the repository"]
fn accept() {
    let outcomes = run(None);
    let known = fs::read_to_string(failures()).unwrap_or_default();
    let text = render_failures(&outcomes, &parse_failures(&known).unwrap());
    fs::write(failures(), &text).unwrap();
    fs::write(page::path(), page::render(&outcomes, &parse_failures(&text).unwrap())).unwrap();
    println!("{}", results::table(&[page::own_row(Counts::of(&outcomes))]));
}

/// Shows what one test sends, what comes back, and what was expected.
#[test]
#[ignore = "for people: needs CACHE_TEST=<test>"]
fn explain() {
    let id = env::var("CACHE_TEST").expect("CACHE_TEST=<test> says which");
    for outcome in run(Some(&id)) {
        let Outcome { id, kind, verdict, detail, .. } = outcome;
        println!("{} ({}): {} {detail}", id, kind.as_str(), verdict.as_str());
        assert_ne!(verdict, Verdict::Untested, "{id} is only for browsers");
    }
}
