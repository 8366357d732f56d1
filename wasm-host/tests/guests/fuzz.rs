//! The fuzz targets, on their seeds and on mutations of them.

use crate::targets;

#[path = "../../../fuzz/mutate.rs"]
mod mutate;

#[test]
fn lists_of_headers() {
    mutate::run("pairs", 20_000, targets::pairs);
}

#[test]
fn calls_with_wild_arguments() {
    mutate::run("host_calls", 2_000, targets::host_calls);
}

#[test]
fn malformed_modules() {
    mutate::run("modules", 150, targets::modules);
}
