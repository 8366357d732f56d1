//! `leno token`: who may use the control plane's API and register workloads.
//!
//! Works on the data directory itself, so whoever can read that directory can let others in; a running control plane
//! notices at once.

use std::{io::Write, path::PathBuf, process::ExitCode};

use leno_control_plane::access::{Role, TokenFile};

use crate::{error::Error, table::Table};

/// Make, list and revoke tokens of a control plane
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    /// The control plane's data directory
    #[arg(
        long,
        global = true,
        env = "LENO_DATA_DIR",
        default_value = "leno-data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print a new token; it is kept as a digest only, so this is the only time it is seen
    Create {
        /// What to call it
        name: String,

        /// What it is for
        #[arg(long, value_enum)]
        role: RoleName,

        /// The namespace whose workloads it may register
        #[arg(short, long, value_name = "NS", required_if_eq("role", "workload"))]
        namespace: Option<String>,
    },
    /// Say which tokens there are
    List,
    /// Make all tokens of a name worthless
    Revoke {
        /// What they are called
        name: String,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoleName {
    /// Everything
    Admin,
    /// Reading
    Viewer,
    /// Sidecars: registering and renewing workloads of one namespace
    Workload,
}

pub fn run(args: &TokenArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Usage(error.to_string());
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| failed(&format_args!("{}: {error}", args.data_dir.display())))?;
    let file = TokenFile::open(&args.data_dir).map_err(|error| failed(&error))?;
    match &args.action {
        Action::Create { name, role, namespace } => {
            let role = match role {
                RoleName::Admin => Role::Admin,
                RoleName::Viewer => Role::Viewer,
                RoleName::Workload => Role::Workload,
            };
            let token =
                file.issue(name, role, namespace.as_deref()).map_err(|error| failed(&error))?;
            writeln!(out, "{token}")?;
        }
        Action::List => {
            let mut table = Table::new(["name", "role", "namespace"]);
            for (name, role, namespace) in file.list().map_err(|error| failed(&error))? {
                table.add(vec![
                    name,
                    format!("{role:?}").to_lowercase(),
                    namespace.unwrap_or_default(),
                ]);
            }
            table.print(out)?;
        }
        Action::Revoke { name } => match file.revoke(name).map_err(|error| failed(&error))? {
            0 => {
                eprintln!(
                    "error: there is no token called {name}; `leno token list` says which there are"
                );
                return Ok(ExitCode::FAILURE);
            }
            count => writeln!(out, "{count} revoked")?,
        },
    }
    Ok(ExitCode::SUCCESS)
}
