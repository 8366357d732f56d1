//! The certificate of a running proxy, from its admin port's `/certs`. Reads leniently, as the other tables do.

use std::{
    io::{self, Write},
    time::Duration,
};

use http::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{ask, send};
use crate::{
    commands::ca::short,
    error::Error,
    moments::{Moment, distance},
};

pub const PATH: &str = "/certs";
const RENEW: &str = "/certs/renew";
/// A new certificate takes milliseconds; the proxy itself tries for longer.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Has the proxy get a new certificate, and waits until it shows it.
pub async fn renew(admin: &str) -> Result<Value, Error> {
    let before = ask(admin, PATH).await?;
    send(admin, Method::POST, RENEW).await?;
    let deadline = Instant::now() + RENEWAL_LIMIT;
    loop {
        let now = ask(admin, PATH).await?;
        if now.get("serial") != before.get("serial") {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            let reason = match text(&now, "last_error").as_str() {
                "" => "the control plane has not answered it yet".to_owned(),
                error => error.to_owned(),
            };
            return Err(Error::Usage(format!(
                "the proxy at {admin} has no new certificate after {RENEWAL_LIMIT:?}: {reason}; it goes on trying, and \
                 keeps the one it has"
            )));
        }
        sleep(POLL).await;
    }
}

/// What `/certs` says, as lines.
pub fn print(certs: &Value, now: u64, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| match value {
        "" => writeln!(out, "{name:<10}  -"),
        value => writeln!(out, "{name:<10}  {value}"),
    };
    line("identity", &text(certs, "id"))?;
    line("source", &text(certs, "source"))?;
    line("serial", &text(certs, "serial"))?;
    line("valid", &validity(certs, now))?;
    line("renewals", &text(certs, "renewals"))?;
    line("last error", &text(certs, "last_error"))?;
    let roots = certs.get("roots").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for root in roots {
        line("trusts", &described(root, now))?;
    }
    Ok(())
}

fn validity(certs: &Value, now: u64) -> String {
    let (begin, end) = (moment(certs, "not_before"), moment(certs, "not_after"));
    match (begin, end) {
        (Some(begin), Some(end)) if now < begin => {
            format!("only from {} on, until {}", Moment(begin), Moment(end))
        }
        (_, Some(end)) if now >= end => {
            format!("no longer: it ended {} ({})", distance(end, now), Moment(end))
        }
        (Some(begin), Some(end)) => {
            let left = 100 * (end - now) / (end - begin).max(1);
            format!("until {} ({}, {left} % of its life)", Moment(end), distance(end, now))
        }
        _ => String::new(),
    }
}

fn described(root: &Value, now: u64) -> String {
    if let Value::String(text) = root {
        return text.clone();
    }
    let end = moment(root, "not_after")
        .map(|end| format!("until {} ({})", Moment(end), distance(end, now)));
    let parts = [Some(short(&text(root, "fingerprint"))), Some(text(root, "subject")), end];
    let parts: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    parts.join("  ")
}

/// A point in time of an answer, in Unix seconds.
pub fn moment(value: &Value, field: &str) -> Option<u64> {
    Moment::deserialize(value.get(field)?).ok().map(|moment| moment.0)
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printed(certs: &Value, now: u64) -> String {
        let mut out = Vec::new();
        print(certs, now, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_proxy_shows_and_whom_it_trusts_is_said_in_words() {
        let certs = json!({
            "id": "spiffe://cluster.local/ns/shop/sa/order", "source": "control plane 127.0.0.1:15012",
            "serial": "0a1b", "not_before": 1_000_000, "not_after": "1970-01-13T13:46:40Z", "renewals": 3,
            "last_error": null, "roots": [{"fingerprint": "ff", "subject": "CN=mesh", "not_after": 1_100_000}],
        });
        let text = printed(&certs, 1_090_000);
        let end = "until 1970-01-13T17:33:20Z (in 166m)";
        assert_eq!(
            text,
            format!(
                "identity    spiffe://cluster.local/ns/shop/sa/order\nsource      control plane 127.0.0.1:15012\n\
                 serial      0a1b\nvalid       no longer: it ended 60m ago (1970-01-13T13:46:40Z)\nrenewals    3\n\
                 last error  -\ntrusts      ff  CN=mesh  {end}\n"
            )
        );
        assert!(printed(&certs, 1_079_200).contains("(in 120m, 8 % of its life)"));
        assert!(printed(&certs, 1_000).contains("only from 1970-01-12T13:46:40Z on"));
    }

    #[test]
    fn a_proxy_without_a_certificate_has_lines_too() {
        let text = printed(&json!({"source": "none"}), 1_000);
        assert!(text.starts_with("identity    -\nsource      none\nserial      -\n"), "{text}");
    }
}
