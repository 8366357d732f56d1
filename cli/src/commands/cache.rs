//! `leno cache`: what sidecars keep of responses, to be looked at and to be forgotten.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ca::rotation::names, proxy_config::ask};
use crate::{
    api_client::{ApiClient, ServerArgs, cache::Purged},
    error::Error,
    table::Table,
};

/// Of the admin port.
const STATS: &str = "/cache?format=json";

/// Look at what sidecars keep of responses, and have them forget it
#[derive(Debug, clap::Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Have every sidecar forget responses of a service; exits 1 if one did not confirm it in time (it will, once it can)
    Purge(Purge),
    /// Show what a sidecar keeps, and how much that is of use
    Stats(Stats),
}

#[derive(Debug, clap::Args)]
struct Purge {
    /// Whose responses: namespace and name, with or without a port
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]")]
    service: String,

    #[command(flatten)]
    which: Which,

    /// How long to wait for the sidecars, at most 20s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: ServerArgs,
}

/// Without any of these: all of the service.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Which {
    /// Those for this path with its query, as requests have it
    #[arg(long)]
    path: Option<String>,

    /// Those whose path with query begins so
    #[arg(long)]
    prefix: Option<String>,

    /// Those that the service has given this tag (Surrogate-Key, Cache-Tag)
    #[arg(long)]
    tag: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Stats {
    /// The admin port of the sidecar
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    proxy: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub async fn run(args: &CacheArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    match &args.action {
        Action::Purge(args) => purge(args, out).await,
        Action::Stats(args) => stats(args, out).await,
    }
}

async fn purge(args: &Purge, out: &mut impl Write) -> Result<ExitCode, Error> {
    let client = ApiClient::new(&args.server)?;
    let (purged, answer) = client.purge(&args.order()).await?;
    match args.output {
        Output::Json => writeln!(out, "{answer:#}")?,
        Output::Table => print(&args.service, &purged, out)?,
    }
    if purged.confirmed == purged.proxies {
        return Ok(ExitCode::SUCCESS);
    }
    let missing = purged.proxies.saturating_sub(purged.confirmed);
    eprintln!(
        "error: no word yet of {}: what they keep they may still serve; they forget it once they reach the control plane",
        names(&purged.waiting, missing)
    );
    Ok(ExitCode::FAILURE)
}

impl Purge {
    /// As the API has it.
    fn order(&self) -> Value {
        let mut order = json!({"service": self.service, "timeout": self.timeout});
        let which =
            [("path", &self.which.path), ("prefix", &self.which.prefix), ("tag", &self.which.tag)];
        for (name, value) in which {
            if let Some(value) = value {
                order[name] = value.as_str().into();
            }
        }
        order
    }
}

fn print(service: &str, purged: &Purged, out: &mut impl Write) -> io::Result<()> {
    let Purged { proxies, confirmed, removed, .. } = purged;
    let responses = if *removed == 1 { "response" } else { "responses" };
    writeln!(out, "{removed} {responses} removed at {confirmed} of {proxies} sidecars")?;
    if *proxies == 0 {
        writeln!(out, "no sidecar that calls {service} keeps responses, or none is connected")?;
    }
    Ok(())
}

/// What `/cache` says of a policy. Reads leniently, as the other tables do.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cache {
    policy: String,
    hits: u64,
    misses: u64,
    stale: u64,
    collapsed: u64,
    validated: u64,
    purged: u64,
    evicted: u64,
    urls: u64,
    bytes: u64,
    max_bytes: u64,
    saved_bytes: u64,
    oldest_seconds: Option<u64>,
    hit_ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Caches {
    caches: Vec<Cache>,
}

async fn stats(args: &Stats, out: &mut impl Write) -> Result<ExitCode, Error> {
    let answer = ask(&args.proxy, STATS).await?;
    if args.output == Output::Json {
        writeln!(out, "{answer:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let Caches { caches } = serde_json::from_value(answer)
        .map_err(|source| Error::Unreadable { from: format!("{}{STATS}", args.proxy), source })?;
    if caches.is_empty() {
        eprintln!(
            "the proxy at {} keeps no responses: it has no CachePolicy yet, and learns of one when the service is first called",
            args.proxy
        );
        return Ok(ExitCode::SUCCESS);
    }
    table(&caches).print(out)?;
    Ok(ExitCode::SUCCESS)
}

fn table(caches: &[Cache]) -> Table {
    let mut table = Table::new([
        "policy",
        "hit ratio",
        "hits",
        "misses",
        "stale",
        "collapsed",
        "validated",
        "kept",
        "of",
        "urls",
        "oldest",
        "saved",
        "evicted",
        "purged",
    ]);
    for cache in caches {
        table.add(vec![
            cache.policy.clone(),
            cache.hit_ratio.map(|ratio| format!("{:.1} %", ratio * 100.0)).unwrap_or_default(),
            cache.hits.to_string(),
            cache.misses.to_string(),
            cache.stale.to_string(),
            cache.collapsed.to_string(),
            cache.validated.to_string(),
            size(cache.bytes),
            size(cache.max_bytes),
            cache.urls.to_string(),
            cache.oldest_seconds.map(age).unwrap_or_default(),
            size(cache.saved_bytes),
            cache.evicted.to_string(),
            cache.purged.to_string(),
        ]);
    }
    table
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // As printed: 1023.96 would read 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: CacheArgs,
    }

    fn parse(words: &str) -> Result<CacheArgs, clap::Error> {
        let words = ["cache"].into_iter().chain(words.split(' '));
        Cli::try_parse_from(words).map(|cli| cli.args)
    }

    fn order(words: &str) -> Value {
        match parse(words).unwrap().action {
            Action::Purge(purge) => purge.order(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_order_says_what_was_typed_and_nothing_else() {
        for (words, expected) in [
            ("", json!({})),
            (" --path /x?y=1", json!({"path": "/x?y=1"})),
            (" --prefix /x", json!({"prefix": "/x"})),
            (" --tag product-7", json!({"tag": "product-7"})),
        ] {
            let mut expected = expected;
            expected["service"] = "shop/products:80".into();
            expected["timeout"] = "5s".into();
            assert_eq!(order(&format!("purge --service shop/products:80{words}")), expected);
        }
        assert_eq!(order("purge --service shop/a --timeout 1s")["timeout"], "1s");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for words in [
            "purge",
            "purge --path /x",
            "purge --service shop/a --path /x --tag y",
            "purge --service shop/a --prefix /x --path /x",
            "stats --service shop/a",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
        let stats = parse("stats --proxy 127.0.0.1:1 -o json").unwrap();
        let Action::Stats(Stats { proxy, output }) = stats.action else { panic!() };
        assert_eq!((&*proxy, output), ("127.0.0.1:1", Output::Json));
    }

    #[test]
    fn a_purge_says_how_far_it_came() {
        let text = |proxies, confirmed, removed| {
            let purged = Purged { proxies, confirmed, removed, waiting: Vec::new() };
            let mut out = Vec::new();
            print("shop/a", &purged, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(3, 3, 17), "17 responses removed at 3 of 3 sidecars\n");
        assert_eq!(text(3, 2, 1), "1 response removed at 2 of 3 sidecars\n");
        assert!(text(0, 0, 0).contains("no sidecar that calls shop/a keeps responses"));
    }

    #[test]
    fn figures_are_for_people() {
        let caches = json!({"caches": [
            {"policy": "shop/a", "hits": 3, "misses": 1, "hitRatio": 0.75, "bytes": 2048, "maxBytes": 67_108_864,
             "oldestSeconds": 150, "savedBytes": 512},
            {"policy": "shop/b", "unknown": true},
        ]});
        let Caches { caches } = serde_json::from_value(caches).unwrap();
        let mut out = Vec::new();
        table(&caches).print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            rows[1],
            [
                "shop/a", "75.0 %", "3", "1", "0", "0", "0", "2.0 KiB", "64.0 MiB", "0", "2m",
                "512 B", "0", "0"
            ]
        );
        assert_eq!(rows[2][..3], ["shop/b", "-", "0"]);
        assert_eq!((size(1_048_575), size(u64::MAX)), ("1.0 MiB".into(), "16777216.0 TiB".into()));
        assert_eq!(
            (age(119), age(7_199), age(172_799), age(172_800)),
            ("119s".into(), "119m".into(), "47h".into(), "2d".into())
        );
    }
}
