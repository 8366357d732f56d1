//! `leno check`: is the mesh well? The control plane, every certificate, every resource; or what it runs on.
//!
//! `check/judge.rs` decides what is wrong with the mesh; this file asks and prints. `check/kubernetes.rs` is about a
//! cluster (through kubectl), `check/machine.rs` about this machine, each before and after installation.

use std::{io::Write, process::ExitCode};

use leno_api::KINDS;
use serde_json::json;

use self::judge::{Finding, State};
use crate::{
    api_client::{ApiClient, Error as ApiError, ServerArgs},
    error::Error,
    moments::now,
    table::Table,
};

mod judge;
mod kubernetes;
mod machine;

/// Look whether the mesh is well: control plane, certificates, resources that are not live everywhere; else exits 1
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Look instead, before anything is installed, whether it can be: in the cluster that kubectl knows, or on this machine
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, default_missing_value = "kubernetes", conflicts_with_all = ["kubernetes", "machine"])]
    pre: Option<Place>,

    /// Look instead at what is installed in the cluster that kubectl knows
    #[arg(long)]
    kubernetes: bool,

    /// Look instead at the sidecars of this machine that joined
    #[arg(long, conflicts_with = "kubernetes")]
    machine: bool,

    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Place {
    Kubernetes,
    Machine,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub async fn run(args: &CheckArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let mut findings = match (args.pre, args.kubernetes, args.machine) {
        (Some(Place::Kubernetes), ..) => kubernetes::before(),
        (Some(Place::Machine), ..) => machine::before(),
        (_, true, _) => kubernetes::after(),
        (.., true) => machine::after().await,
        _ => findings(&ApiClient::new(&args.server)?).await?,
    };
    // What is wrong stands next to the hints, however long the table is.
    findings.sort_by_key(|finding| finding.state);
    match args.output {
        Output::Table => print(&findings, out)?,
        Output::Json => writeln!(out, "{:#}", as_json(&findings))?,
    }
    // What a cluster or machine lacks may be wanted so; in a mesh that runs, nothing should.
    let about_the_mesh = args.pre.is_none() && !args.kubernetes && !args.machine;
    let worst = if about_the_mesh { State::Ok } else { State::Warning };
    let well = findings.iter().all(|finding| finding.state <= worst);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn findings(client: &ApiClient) -> Result<Vec<Finding>, Error> {
    let version = match client.version().await {
        Ok(version) => version,
        // Not to be reached, or not to be trusted, is a finding, not a mistake of whoever asks.
        Err(
            error @ (ApiError::Unreachable { .. } | ApiError::Http { .. } | ApiError::Server(_)),
        ) => {
            return Ok(vec![judge::unreachable(&error.to_string())]);
        }
        Err(error) => return Err(error.into()),
    };
    let now = now();
    let mut findings = vec![judge::control_plane(&client.server(), &version)];
    findings.extend(client.own_certificate().await?.map(|life| judge::own(life, now)));
    findings.extend(judge::authority(&client.ca_status().await?, now));
    findings.extend(judge::certificates(&client.ca_certificates().await?, now));
    let mut live = 0;
    for kind in KINDS {
        for object in client.list(kind, None).await?.items {
            match judge::resource(kind.kind, &object) {
                None => live += 1,
                Some(finding) => findings.push(finding),
            }
        }
    }
    findings.push(judge::live(live));
    Ok(findings)
}

fn print(findings: &[Finding], out: &mut impl Write) -> Result<(), Error> {
    let mut table = Table::new(["what", "state", "because"]);
    for Finding { what, state, because, .. } in findings {
        table.add(vec![what.clone(), state.word().to_owned(), because.clone()]);
    }
    table.print(out)?;
    // One hint is said once, however many it is for.
    let mut said = Vec::new();
    for hint in findings.iter().filter_map(|finding| finding.hint) {
        if !said.contains(&hint) {
            writeln!(out, "{}hint: {hint}", if said.is_empty() { "\n" } else { "" })?;
            said.push(hint);
        }
    }
    Ok(())
}

fn as_json(findings: &[Finding]) -> serde_json::Value {
    let well = findings.iter().all(|finding| finding.state == State::Ok);
    let findings = findings.iter().map(|finding| {
        json!({
            "what": finding.what,
            "state": finding.state.word(),
            "because": finding.because,
            "hint": finding.hint,
        })
    });
    json!({"ok": well, "findings": findings.collect::<Vec<_>>()})
}
