//! `leno proxy-config`: what a running sidecar has, from its admin port.
//!
//! `proxy_config/rows.rs` turns what the port answers into rows · `proxy_config/certs.rs` is about its certificate.

use std::{io::Write, process::ExitCode};

use http::{Method, Request};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::Value;

use crate::{
    error::Error,
    http_client::{Error as HttpError, HttpClient},
    moments::now,
};

pub mod certs;
mod rows;

/// Show what a running proxy has
#[derive(Debug, clap::Args)]
pub struct ProxyConfigArgs {
    /// What to show
    #[arg(value_enum)]
    what: What,

    /// The admin port of the proxy
    #[arg(value_name = "ADMIN ADDRESS", default_value = "127.0.0.1:15000")]
    admin: String,

    /// With certs: have it get a new certificate now
    #[arg(long)]
    renew: bool,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Which requests go where
    Routes,
    /// Names and ports callers may use
    Services,
    /// Instances, with what is going on at each
    Workloads,
    /// Which configuration is live, from where, and what was rejected
    Snapshot,
    /// The proxy's own view of each service port: balancer, connections
    Clusters,
    /// Where the proxy listens
    Listeners,
    /// Its certificate, and whose it trusts
    Certs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub async fn run(args: &ProxyConfigArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    if args.renew && args.what != What::Certs {
        return Err(Error::Usage("--renew goes with `certs`".to_owned()));
    }
    let path = match args.what {
        What::Routes | What::Services | What::Snapshot => "/config_dump",
        What::Workloads | What::Clusters => "/clusters?format=json",
        What::Listeners => "/listeners?format=json",
        What::Certs => certs::PATH,
    };
    let answer = match args.renew {
        true => certs::renew(&args.admin).await?,
        false => ask(&args.admin, path).await?,
    };
    if matches!(args.output, Output::Json) {
        writeln!(out, "{answer:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.what {
        What::Snapshot => rows::print_snapshot(&answer, out)?,
        What::Certs => certs::print(&answer, now(), out)?,
        _ => print_table(args, &answer, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(args: &ProxyConfigArgs, answer: &Value, out: &mut impl Write) -> Result<(), Error> {
    let mut table = match args.what {
        What::Services => rows::services(answer),
        What::Workloads => rows::workloads(answer),
        What::Clusters => rows::clusters(answer),
        What::Listeners => rows::listeners(answer),
        What::Routes | What::Snapshot | What::Certs => rows::routes(answer),
    };
    if table.is_empty() {
        eprintln!(
            "the proxy at {} has none of these yet: it learns of a service when it is first called",
            args.admin
        );
        return Ok(());
    }
    Ok(table.print(out)?)
}

/// One answer of an admin port, as JSON.
pub async fn ask(admin: &str, path: &str) -> Result<Value, Error> {
    let body = send(admin, Method::GET, path).await?;
    serde_json::from_slice(&body)
        .map_err(|source| Error::Unreadable { from: format!("{admin}{path}"), source })
}

async fn send(admin: &str, method: Method, path: &str) -> Result<Bytes, Error> {
    let client = HttpClient::new(admin)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Full::default())
        .map_err(|error| Error::Usage(format!("cannot ask {admin} for {path}: {error}")))?;
    let response = client.send(request).await.map_err(not_there)?;
    if !response.status().is_success() {
        return Err(Error::Usage(format!(
            "{admin} answered {path} with {}; is it the admin port of a proxy (--admin)?",
            response.status()
        )));
    }
    Ok(response.into_body())
}

fn not_there(error: HttpError) -> Error {
    if error.is_unreachable() {
        return Error::Usage(format!(
            "{error}; is a proxy running there? its admin port is in the line it prints when it starts"
        ));
    }
    error.into()
}
