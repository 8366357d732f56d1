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
    results::{
        Counts, Failures, Outcome, Verdict, differences, differing, parse_failures,
        render_failures, replace,
    },
    std::{env, fs, path::PathBuf},
    suite::{Choice, Suite},
    tokio::runtime::Runtime,
};

/// What callers say to the sidecar.
#[cfg(test)]
const HOST: &str = "suite.default";

#[cfg(test)]
fn run(only: &[String], shown: bool) -> Vec<Outcome> {
    let runtime = Runtime::new().unwrap();
    let sidecar = |port| {
        let proxy: Proxy = runtime.block_on(mesh(port).start());
        let base = format!("http://{}", proxy.outbound);
        (proxy, base)
    };
    Suite::install().run(Choice { host: Some(HOST), only, shown }, sidecar)
}

/// How often what differs from the list runs again.
#[cfg(test)]
const AGAIN: u32 = 5;

/// All of them. Some count on two requests within a second of each other and are disturbed by a busy machine: what
/// differs from the list runs again by itself, and what comes out in the end counts.
#[cfg(test)]
fn run_all(known: &Failures) -> Vec<Outcome> {
    let mut outcomes = run(&[], false);
    for _ in 0..AGAIN {
        let again = differing(&outcomes, known);
        if again.is_empty() {
            break;
        }
        println!("run again: {}", again.join(", "));
        replace(&mut outcomes, &again, run(&again, false));
    }
    outcomes
}

#[cfg(test)]
fn mesh(port: u16) -> Mesh {
    Mesh::default()
        .service("suite", "http", &[([127, 0, 0, 1], port).into()])
        .yaml(
            "apiVersion: leno.dev/v1alpha1\nkind: CachePolicy\n\
             metadata: {name: suite, namespace: default}\n\
             spec: {targetRefs: [{group: '', kind: Service, name: suite}], staleIfError: 1m}",
        )
        .arguments(&["--workers", "2"])
}

#[cfg(test)]
fn failures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance/http_cache/failures.txt")
}

#[cfg(test)]
fn known() -> Failures {
    parse_failures(&fs::read_to_string(failures()).unwrap()).unwrap()
}

#[test]
fn passes_what_it_passed_before() {
    let known = known();
    let outcomes = run_all(&known);
    println!("{}", results::table(&[page::own_row(Counts::of(&outcomes))]));
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
    let known = known();
    let outcomes = run_all(&known);
    let text = render_failures(&outcomes, &known);
    fs::write(failures(), &text).unwrap();
    fs::write(page::path(), page::render(&outcomes, &parse_failures(&text).unwrap())).unwrap();
    println!("{}", results::table(&[page::own_row(Counts::of(&outcomes))]));
}

/// Shows what tests send, what comes back, and what was expected.
#[test]
#[ignore = "for people: needs CACHE_TEST=<test>, several with commas between"]
fn explain() {
    let named = env::var("CACHE_TEST").expect("CACHE_TEST=<test> says which");
    let named: Vec<String> = named.split(',').map(str::to_owned).collect();
    for outcome in run(&named, true) {
        let Outcome { id, kind, verdict, detail, .. } = outcome;
        println!("{id} ({}): {} {detail}", kind.as_str(), verdict.as_str());
        assert_ne!(verdict, Verdict::Untested, "{id} is only for browsers");
    }
}
