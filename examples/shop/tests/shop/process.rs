//! The binary: one line of JSON on standard output, a clean end on SIGTERM, a clear error.

use crate::setup::get;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Duration, timeout};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leno-shop"));
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn it_announces_itself_in_one_line_and_ends_on_sigterm() {
    let mut child = command().arg("user").env("LENO_SHOP_INSTANCE", "user-env").spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = stdout.next_line().await.unwrap().unwrap();
    let announced: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(announced["service"], "user");
    assert_eq!(announced["instance"], "user-env");
    let [listen, control] =
        ["listen", "control"].map(|field| announced[field].as_str().unwrap().parse().unwrap());
    assert_eq!(get(listen, "/users/u2").await.body["name"], "Joseph Jacquard");
    assert_eq!(get(control, "/").await.body["instance"], "user-env");

    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = timeout(Duration::from_secs(60), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(stdout.next_line().await.unwrap(), None, "one line only");
}

#[tokio::test]
async fn it_says_what_is_missing_and_fails() {
    let output = command().arg("order").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("how to reach user: give --mesh ADDR or --user-addr ADDR"), "{stderr}");
    assert!(output.stdout.is_empty());

    let output = command().args(["user", "--mesh", "localhost"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("not HOST:PORT"), "{stderr}");
}
