//! `leno plugin list`: the plugins of a running proxy, from its admin port.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use crate::{commands::proxy_config::ask, error::Error, table::Table};

/// Show the plugins of a running proxy: versions, what they did, why one is not live
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The admin port of the proxy
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub async fn run(args: &ListArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let answer = ask(&args.admin, "/plugins").await?;
    if matches!(args.output, Output::Json) {
        writeln!(out, "{answer:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let plugins = answer.get("plugins").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if plugins.is_empty() {
        eprintln!("the proxy at {} has no plugins", args.admin);
        return Ok(ExitCode::SUCCESS);
    }
    table(plugins).print(out)?;
    for plugin in plugins.iter().filter(|plugin| plugin.get("reason").is_some()) {
        eprintln!("{}: {}", text(plugin, "/name"), text(plugin, "/reason"));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(plugins: &[Value]) -> Table {
    let mut table = Table::new([
        "plugin", "version", "state", "phase", "where", "calls", "per call", "failures", "traps",
        "overruns", "restarts", "memory",
    ]);
    for plugin in plugins {
        let mut row = vec![text(plugin, "/name"), text(plugin, "/version")];
        row.extend(["/state", "/phase", "/where"].map(|field| text(plugin, field)));
        row.extend(figures(plugin.get("figures")));
        table.add(row);
        // A version on trial has a line of its own.
        if let Some(canary) = plugin.get("canary") {
            let share = format!("trial, {} %", text(canary, "/percent"));
            let mut row = vec![text(plugin, "/name"), text(canary, "/version"), share];
            row.extend(["/phase", "/where"].map(|field| text(plugin, field)));
            row.extend(figures(canary.get("figures")));
            table.add(row);
        }
    }
    table
}

fn figures(figures: Option<&Value>) -> [String; 7] {
    let Some(figures) = figures else { return Default::default() };
    let number = |name: &str| figures.get(name).and_then(Value::as_f64).unwrap_or_default();
    let calls = number("calls");
    let each = match calls > 0.0 {
        true => format!("{:.1}us", number("milliseconds") * 1000.0 / calls),
        false => String::new(),
    };
    [
        text(figures, "/calls"),
        each,
        text(figures, "/failures"),
        text(figures, "/traps"),
        text(figures, "/overruns"),
        text(figures, "/restarts"),
        format!("{:.0}Ki", number("memoryBytes") / 1024.0),
    ]
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_version_on_trial_has_a_line_of_its_own() {
        let figures = json!({
            "calls": 4, "milliseconds": 0.01, "failures": 1, "traps": 1, "overruns": 0, "restarts": 2,
            "memoryBytes": 131_072,
        });
        let plugins = [
            json!({
                "name": "shop/tag", "version": "aa-bb", "state": "trial", "phase": "AUTHN",
                "where": "SERVER 80", "figures": figures,
                "canary": {"version": "cc-dd", "percent": 10, "figures": figures},
            }),
            json!({"name": "shop/new", "version": null, "state": "loading", "phase": "STATS", "where": "CLIENT"}),
        ];
        let mut printed = Vec::new();
        table(&plugins).print(&mut printed).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        let words: Vec<Vec<_>> = printed
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|w| !w.is_empty()).collect())
            .collect();
        let seen = ["4", "2.5us", "1", "1", "0", "2", "128Ki"];
        let live = [&["shop/tag", "aa-bb", "trial", "AUTHN", "SERVER 80"][..], &seen].concat();
        let trial =
            [&["shop/tag", "cc-dd", "trial, 10 %", "AUTHN", "SERVER 80"][..], &seen].concat();
        assert_eq!(words[1], live, "{printed}");
        assert_eq!(words[2], trial, "{printed}");
        assert_eq!(&words[3][..5], ["shop/new", "-", "loading", "STATS", "CLIENT"], "{printed}");
    }
}
