//! SIGKILL at any moment loses no acknowledged write.
//!
//! The test runs itself again as a child that writes without pause and prints each write only
//! after the store acknowledged it. The parent kills it in mid-write, many times over one data
//! directory, and checks that everything ever printed is there.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use leno_control_plane::store::{EmbeddedStore, Expect, Key, Operation, Selection, Store};
use tempfile::TempDir;

const CHILD: &str = "LENO_TEST_STORE_KILL_DIRECTORY";
const ROUNDS: u64 = 25;
/// Writers at the same time, so that groups of several transactions are cut as well.
const WRITERS: u64 = 8;

#[test]
fn no_acknowledged_write_is_lost() {
    if let Some(directory) = env::var_os(CHILD) {
        return write_until_killed(Path::new(&directory));
    }
    let directory = TempDir::new().unwrap();
    let mut acknowledged = std::collections::BTreeMap::new();
    for round in 0..ROUNDS {
        for (writer, number) in run_and_kill(directory.path(), round) {
            acknowledged.insert(writer, number);
        }
        check(directory.path(), &acknowledged, round);
    }
    assert_eq!(acknowledged.len() as u64, WRITERS, "a writer never got through: {acknowledged:?}");
}

/// The last write that each writer saw acknowledged.
fn run_and_kill(directory: &Path, round: u64) -> Vec<(u64, u64)> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["no_acknowledged_write_is_lost", "--exact", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        let parse = |line: String| {
            let (writer, number) = line.strip_prefix("acknowledged ")?.split_once(' ')?;
            Some((writer.parse().ok()?, number.parse().ok()?))
        };
        lines.map_while(Result::ok).filter_map(parse).collect::<Vec<_>>()
    });
    // Different each round: while opening, at the first writes, in the midst of many.
    std::thread::sleep(Duration::from_millis(20 + round * 17 % 300));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn check(directory: &Path, acknowledged: &std::collections::BTreeMap<u64, u64>, round: u64) {
    let store = EmbeddedStore::open(directory)
        .unwrap_or_else(|error| panic!("round {round}: the store does not open: {error}"));
    for (writer, expected) in acknowledged {
        let number = |half| -> u64 {
            let stored = store.get(&key(*writer, half)).expect("an acknowledged object is gone");
            stored.json().unwrap()["number"].as_u64().unwrap()
        };
        let (left, right) = (number("left"), number("right"));
        assert!(left >= *expected, "round {round}: writer {writer} has {left}, not {expected}");
        assert_eq!(left, right, "round {round}: half a transaction is there");
    }
    let newest = store.list(&Selection::all()).items.iter().map(|o| o.modified).max();
    assert!(newest.unwrap_or(0) <= store.revision());
}

fn key(writer: u64, half: &str) -> Key {
    Key::new("leno.dev", "services", "shop", &format!("{writer}-{half}"))
}

fn write_until_killed(directory: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(directory).unwrap());
    let writers = (0..WRITERS).map(|writer| runtime.spawn(write(store.clone(), writer)));
    for writer in writers.collect::<Vec<_>>() {
        runtime.block_on(writer).unwrap();
    }
}

/// Each transaction raises two objects to the same number.
async fn write(store: Arc<dyn Store>, writer: u64) {
    let before = store.get(&key(writer, "left")).map(|object| object.json().unwrap());
    let mut number = before.map_or(0, |object| object["number"].as_u64().unwrap());
    loop {
        number += 1;
        let put = |half| Operation::Put {
            key: key(writer, half),
            value: Bytes::from(format!("{{\"number\": {number}}}")),
            expect: Expect::Any,
        };
        store.commit(vec![put("left"), put("right")]).await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {writer} {number}").unwrap();
        out.flush().unwrap();
    }
}
