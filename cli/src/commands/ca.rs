//! `leno ca`: the mesh's certificate authority, which is part of the control plane.
//!
//! `ca/rotation.rs` replaces the root step by step.

use std::{cell::RefCell, io::Write, process::ExitCode};

use tokio::signal::ctrl_c;

use crate::{
    api_client::{
        ApiClient, ServerArgs,
        authority::{Certificate, Status, Step},
    },
    error::Error,
    moments::{distance, now},
    table::Table,
};

pub mod rotation;

/// Of a fingerprint or serial: enough to tell one from another.
const SHORT: usize = 12;
const INTERRUPTED: u8 = 130;

/// Look after the certificate authority: what is trusted, what was issued, how the root is replaced
#[derive(Debug, clap::Args)]
pub struct CaArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print the roots that are trusted now, in PEM: what `--ca-file` takes
    Bundle(#[command(flatten)] Box<ServerArgs>),
    /// Say which roots are trusted, which one signs, and how far a rotation is
    Status(Shown),
    /// Show the certificate that each proxy was given last
    Certificates(Shown),
    /// Replace the root while everything runs: add a new one, let it sign, drop the old one
    RotateRoot(RotateRoot),
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, clap::Args)]
struct RotateRoot {
    /// Take just this step, if every proxy is ready for it
    #[arg(long, value_enum)]
    step: Option<Step>,

    /// Take the last step back
    #[arg(long, conflicts_with = "step")]
    undo: bool,

    /// Take the step even if not every proxy is ready: those that are not lose their connections
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub async fn run(args: &CaArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    match &args.action {
        Action::Bundle(server) => {
            let bundle = ApiClient::new(server)?.ca_bundle().await?;
            out.write_all(bundle.as_bytes())?;
        }
        Action::Status(shown) => status(shown, out).await?,
        Action::Certificates(shown) => certificates(shown, out).await?,
        Action::RotateRoot(args) => return rotate_root(args, out).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(shown: &Shown, out: &mut impl Write) -> Result<(), Error> {
    let client = ApiClient::new(&shown.server)?;
    match shown.output {
        Output::Json => writeln!(out, "{:#}", client.ca_status_json().await?)?,
        Output::Table => print_status(&client.ca_status().await?, now(), out)?,
    }
    Ok(())
}

fn print_status(status: &Status, now: u64, out: &mut impl Write) -> Result<(), Error> {
    writeln!(out, "trust domain  {}", status.trust_domain)?;
    writeln!(out, "rotation      {}", rotation::told(status))?;
    let Status { connected, have_bundle, waiting_for, absent, .. } = status;
    write!(out, "proxies       {have_bundle} of {connected} trust these roots")?;
    if !waiting_for.is_empty() {
        let lagging = connected.saturating_sub(*have_bundle);
        write!(out, ", waiting for {}", rotation::names(waiting_for, lagging))?;
    }
    if *absent > 0 {
        write!(out, "; {absent} with a good certificate are not connected")?;
    }
    writeln!(out, "\n")?;
    let mut table = Table::new(["root", "subject", "signs", "ends", "at"]);
    for root in &status.roots {
        table.add(vec![
            short(&root.fingerprint),
            root.subject.clone(),
            if root.signer { "yes" } else { "no" }.to_owned(),
            distance(root.not_after.0, now),
            root.not_after.to_string(),
        ]);
    }
    Ok(table.print(out)?)
}

async fn certificates(shown: &Shown, out: &mut impl Write) -> Result<(), Error> {
    let client = ApiClient::new(&shown.server)?;
    if shown.output == Output::Json {
        return Ok(writeln!(out, "{:#}", client.ca_certificates_json().await?)?);
    }
    let certificates = client.ca_certificates().await?;
    if certificates.is_empty() {
        eprintln!("no proxy has asked for a certificate yet");
        return Ok(());
    }
    Ok(rows(&certificates, now()).print(out)?)
}

fn rows(certificates: &[Certificate], now: u64) -> Table {
    let mut table = Table::new(["proxy", "identity", "serial", "root", "ends"]);
    for certificate in certificates {
        table.add(vec![
            certificate.proxy.clone(),
            certificate.spiffe_id.clone(),
            short(&certificate.serial),
            short(&certificate.signer),
            distance(certificate.not_after.0, now),
        ]);
    }
    table
}

async fn rotate_root(args: &RotateRoot, out: &mut impl Write) -> Result<ExitCode, Error> {
    let client = ApiClient::new(&args.server)?;
    let step = if args.undo { Some(Step::Undo) } else { args.step };
    if let Some(step) = step {
        client.learn_roots().await?;
        let status = client.rotate(step, args.force).await?;
        writeln!(out, "{}", rotation::told(&status))?;
        after(&client).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.force {
        let message = "--force goes with --step or --undo: one step, by somebody who knows who will not follow";
        return Err(Error::Usage(message.to_owned()));
    }
    // The lines come while the rotation borrows the output.
    let out = RefCell::new(out);
    let ended = tokio::select! {
        ended = rotation::replace_root(&client, |line| writeln!(out.borrow_mut(), "{line}")) => Some(ended),
        _ = ctrl_c() => None,
    };
    match ended {
        Some(Ok(_)) => {
            after(&client).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Err(error)) => {
            eprintln!("{}", rotation::HOW_TO_GO_ON);
            Err(error)
        }
        None => {
            eprintln!("stopped; {}", rotation::HOW_TO_GO_ON);
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// A copy of the roots that was good until now may not be any more.
async fn after(client: &ApiClient) -> Result<(), Error> {
    client.learn_roots().await?;
    if let Some(file) = client.outdated_roots().await? {
        eprintln!(
            "the roots in {} are no longer those of the mesh: replace it by what `leno ca bundle` prints",
            file.display()
        );
    }
    Ok(())
}

/// The beginning of a fingerprint or serial.
pub fn short(hex: &str) -> String {
    hex.chars().take(SHORT).collect()
}
