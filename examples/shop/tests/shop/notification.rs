//! Notification over raw TCP.

use crate::setup::{get, post, service};
use leno_shop::Running;
use serde_json::{Value, json};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends the bytes, half-closes, and reads every answer up to the end.
async fn converse(notification: &Running, bytes: &[u8]) -> io::Result<Vec<Value>> {
    let mut stream = TcpStream::connect(notification.listen).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await?;
    Ok(answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test]
async fn every_line_is_answered_after_a_half_close() {
    let notification = service(&["notification", "--instance", "n-7", "--version", "v2"]).await;
    // The last line has no end of line but the end of the stream.
    let answers = converse(&notification, b"{\"a\":1}\n{\"a\":2}\n{\"a\":3}").await.unwrap();
    let expected = |id| json!({ "ok": true, "id": id, "instance": "n-7", "version": "v2" });
    assert_eq!(answers, [expected(1), expected(2), expected(3)]);
}

#[tokio::test]
async fn a_slow_answer_survives_the_half_close() {
    let notification = service(&["notification"]).await;
    post(notification.control, "/", json!({ "delayMs": 300 })).await;
    let answers = converse(&notification, b"{}\n").await.unwrap();
    assert_eq!(answers[0]["ok"], true);
}

#[tokio::test]
async fn a_bad_line_is_answered_and_the_next_one_served() {
    let notification = service(&["notification"]).await;
    let answers = converse(&notification, b"nonsense\n[1]\n\xff\n{}\n").await.unwrap();
    let ok: Vec<_> = answers.iter().map(|answer| answer["ok"].as_bool().unwrap()).collect();
    assert_eq!(ok, [false, false, false, true]);
    assert!(answers[0]["error"].as_str().unwrap().contains("JSON object"));
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let notification = service(&["notification"]).await;
    let mut stream = TcpStream::connect(notification.listen).await.unwrap();
    stream.write_all(&vec![b' '; 16 * 1024 + 1]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("at most 16384 bytes"), "{answer}");

    let longest = [&[b' '; 16 * 1024 - 3][..], b"{}\n"].concat();
    assert_eq!(converse(&notification, &longest).await.unwrap()[0]["ok"], true);
}

#[tokio::test]
async fn the_last_hundred_events_are_kept() {
    let notification = service(&["notification"]).await;
    let lines: String = (1..=130).map(|nth| format!("{{\"nth\":{nth}}}\n")).collect();
    let answers = converse(&notification, lines.as_bytes()).await.unwrap();
    assert_eq!(answers.len(), 130);
    let events = get(notification.control, "/events").await.body;
    let events = events.as_array().unwrap();
    assert_eq!(events.len(), 100);
    assert_eq!(events[0], json!({ "id": 31, "event": { "nth": 31 } }));
    assert_eq!(events[99]["id"], 130);
}

#[tokio::test]
async fn a_failing_instance_closes_without_an_answer() {
    let notification = service(&["notification"]).await;
    post(notification.control, "/", json!({ "failPercent": 100 })).await;
    let answers = converse(&notification, b"{}\n").await.unwrap_or_default();
    assert!(answers.is_empty(), "{answers:?}");
    let stats = get(notification.control, "/stats").await.body;
    assert_eq!(stats, json!({ "served": 0, "failed": 1 }));
}
