//! WASI as far as plugins import it.

use leno_wasm_host::PluginSettings;

use crate::script::{Guest, Int, Long, Number, Script, number, status, text};

/// Where the first bytes of a script are in its memory.
const DATA: u32 = 1024;

#[test]
fn writing_is_logging() {
    let mut guest = Script::new()
        // The first argument only stores the line where the vectors point to.
        .call("proxy_log", &[Int(0), text("a line\n")])
        .raw("proxy_on_request_headers", &store(512, DATA, 7))
        .wasi("fd_write", &[Int(1), Int(512), Int(1), Number])
        .wasi("fd_write", &[Int(2), Int(512), Int(1), Number])
        .wasi("fd_write", &[Int(3), Int(512), Int(1), Number])
        .wasi("fd_write", &[Int(1), Int(512), Int(1025), Number])
        .wasi("fd_write", &[Int(1), Int(u32::MAX), Int(1), Number])
        .wasi("fd_write", &[Int(1), Int(512), Int(0), Number])
        .start();
    guest.request().1.unwrap();
    let log = guest.log.take();
    let levels: Vec<_> = log.iter().filter(|(_, line)| line == "a line").collect();
    assert_eq!((&levels[0].0[..], &levels[1].0[..]), ("info", "error"));
    let lines: Vec<_> = log.iter().map(|(_, line)| &line[..]).skip(2).collect();
    let (none, seven) = (number(0), number(7));
    let (bad, invalid, fault) = (status(8), status(28), status(21));
    let expected = [
        "a line", "0", &seven, "a line", "0", &seven, &bad, &none, &invalid, &none, &fault, &none,
        "0", &none,
    ];
    assert_eq!(lines, expected);
}

fn store(at: u32, address: u32, length: u32) -> String {
    format!(
        "(i32.store (i32.const {at}) (i32.const {address}))
         (i32.store (i32.const {}) (i32.const {length}))",
        at + 4
    )
}

#[test]
fn vectors_out_of_memory_are_a_fault() {
    let seen = Script::new()
        .raw("proxy_on_request_headers", &store(512, 0xffff_0000, 0xffff_0000))
        .wasi("fd_write", &[Int(1), Int(512), Int(1), Int(40)])
        .log();
    assert_eq!(seen, [status(21)]);
}

#[test]
fn clocks() {
    let seen = Script::new()
        .wasi("clock_time_get", &[Int(0), Long(0), Int(40)])
        .wasi("clock_time_get", &[Int(1), Long(0), Int(40)])
        .wasi("clock_time_get", &[Int(2), Long(0), Int(40)])
        .wasi("clock_time_get", &[Int(0), Long(0), Int(u32::MAX)])
        .wasi("clock_res_get", &[Int(1), Number])
        .wasi("clock_res_get", &[Int(2), Number])
        .log();
    let (unknown, fault) = (status(58), status(21));
    assert_eq!(seen, ["0", "0", &unknown, &fault, "0", &number(1), &unknown, &number(0)]);
}

#[test]
fn randomness() {
    let seen = Script::new()
        .wasi("random_get", &[Int(24), Int(8)])
        .raw("proxy_on_request_headers", "(call $log (i32.const 24) (i32.const 8))")
        .wasi("random_get", &[Int(4096), Int(65_536)])
        .wasi("random_get", &[Int(4096), Int(65_537)])
        .wasi("random_get", &[Int(u32::MAX), Int(2)])
        .log();
    assert_ne!(seen[1], number(0));
    assert_eq!([&seen[0], &seen[2], &seen[3], &seen[4]], ["0", "0", &status(28), &status(21)]);
}

#[test]
fn environment_and_arguments() {
    let settings = PluginSettings {
        environment: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "two".to_owned())],
        ..PluginSettings::default()
    };
    let mut guest = Script::new()
        .wasi("environ_sizes_get", &[Int(24), Int(28)])
        .raw("proxy_on_request_headers", "(call $log (i32.const 24) (i32.const 8))")
        .wasi("environ_get", &[Int(512), Int(600)])
        .raw("proxy_on_request_headers", "(call $log (i32.load (i32.const 516)) (i32.const 6))")
        .wasi("environ_get", &[Int(u32::MAX), Int(600)])
        .wasi("args_sizes_get", &[Int(40), Number])
        .wasi("args_get", &[Int(40), Int(40)])
        .start_with(settings)
        .unwrap();
    guest.request().1.unwrap();
    let sizes = number(10 << 32 | 2);
    let expected = ["0", &sizes, "0", "B=two\0", &status(21), "0", &number(0), "0"];
    assert_eq!(guest.lines(), expected);
}

#[test]
fn files_do_not_exist() {
    let seen = Script::new()
        .wasi(
            "path_open",
            &[Int(3), Int(0), Int(0), Int(1), Int(0), Long(0), Long(0), Int(0), Int(40)],
        )
        .wasi("fd_read", &[Int(0), Int(0), Int(0), Int(40)])
        .wasi("fd_prestat_get", &[Int(3), Int(40)])
        .wasi("fd_fdstat_get", &[Int(0), Int(40)])
        .wasi("fd_fdstat_get", &[Int(1), Int(40)])
        .wasi("fd_fdstat_get", &[Int(1), Int(u32::MAX)])
        .wasi("fd_seek", &[Int(1), Long(0), Int(0), Int(40)])
        .wasi("fd_close", &[Int(1)])
        .wasi("sched_yield", &[])
        .wasi("poll_oneoff", &[Int(0), Int(0), Int(1), Number])
        .log();
    let expected = [
        status(44),
        status(52),
        status(8),
        status(8),
        status(0),
        status(21),
        status(0),
        status(0),
        status(0),
        status(0),
        number(0),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn the_older_name_of_wasi_works() {
    let text = Script::new()
        .call_in("proxy_on_request_headers", "wasi_unstable", "sched_yield", &[])
        .text();
    assert_eq!(Guest::start(&text, PluginSettings::default()).unwrap().request_log(), ["0"]);
}
