//! Who talks to whom, as the sidecars count it.

use std::time::Instant;

use comfy_table::{CellAlignment, presets};

use super::{LOOK, Voice, check_no_failure, latencies};
use crate::{
    demo::{
        Error,
        calls::{Calls, Edge},
        mesh::{CUSTOMER, Mesh},
        narrator::took,
        observation::Customer,
        share::is_plausible,
    },
    table::plain,
};

/// Who must have called whom.
const EDGES: [(&str, &str); 8] = [
    (CUSTOMER, "order-1"),
    (CUSTOMER, "order-2"),
    ("order-1", "user-1"),
    ("order-1", "product-1"),
    ("order-1", "notification-1"),
    ("order-2", "user-1"),
    ("order-2", "product-1"),
    ("order-2", "notification-1"),
];

pub async fn run(mesh: &Mesh, customer: &Customer, narrator: &mut Voice) -> Result<(), Error> {
    narrator.step(&format!("{} orders a second", customer.rate()))?;
    let before = mesh.calls().await?;
    let begun = Instant::now();
    let seen = customer.observe(LOOK).await;
    let seconds = begun.elapsed().as_secs_f64();
    let calls = mesh.calls().await?.since(&before);
    narrator.say(
        "who talks to whom, by the callers' sidecars (Prometheus metrics under Istio's names):",
    )?;
    narrator.show(&table(&calls, seconds))?;
    let rate = seen.per_second();
    narrator.say(&format!("the customer: {rate:.0} orders/s, {}", latencies(&seen)))?;
    check_no_failure(narrator, &seen, "")?;
    let missing: Vec<String> = EDGES
        .iter()
        .filter(|(from, to)| !calls.0.keys().any(|edge| edge.from == *from && edge.to == *to))
        .map(|(from, to)| format!("{from} ▶ {to}"))
        .collect();
    let what = match missing.is_empty() {
        true => "every service calls those it should, through the mesh".to_owned(),
        false => format!("no call was counted of {}", missing.join(", ")),
    };
    narrator.check(missing.is_empty(), &what)?;
    let (one, other) = (seen.served_by("order-1"), seen.served_by("order-2"));
    let what = format!("order-1 and order-2 take turns: {one} and {other} orders");
    narrator.check(is_plausible(0.5, one, one + other), &what)?;
    let untouched = !calls.0.keys().any(|edge| edge.to == "order-v2-1");
    narrator.check(untouched, "the newer version of order is up and gets nothing yet")?;
    Ok(())
}

fn table(calls: &Calls, seconds: f64) -> String {
    let mut table = plain(presets::UTF8_FULL_CONDENSED);
    table.set_header(["from", "to", "protocol", "per second", "failed", "p50", "p99"]);
    for (edge, figures) in &calls.0 {
        let Edge { from, to, protocol } = edge;
        let same =
            |protocol: &str| calls.0.get(&Edge { protocol: protocol.to_owned(), ..edge.clone() });
        if protocol == "http" && same("tcp").is_some() {
            // The CONNECT with which the connection below was asked for.
            continue;
        }
        let timed = if protocol == "tcp" { same("http").unwrap_or(figures) } else { figures };
        let latency = |share| timed.quantile(share).map_or_else(|| "-".to_owned(), took);
        table.add_row([
            from.clone(),
            to.clone(),
            protocol.clone(),
            format!("{:.1}", figures.count / seconds),
            format!("{:.0}", figures.failed),
            latency(0.5),
            latency(0.99),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
