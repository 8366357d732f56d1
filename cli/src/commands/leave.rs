//! `leno leave`: undoes `leno join`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use super::join::{machine::Machine, sidecar};
use crate::error::Error;

/// Take this machine's service out of the mesh: its sidecar finishes what is under way, and is removed
#[derive(Debug, clap::Args)]
pub struct LeaveArgs {
    /// The workload's name, as `leno join` said it
    name: String,

    /// The files are below this folder, and nothing was started
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub fn run(args: &LeaveArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    sidecar::check_name("NAME", &args.name).map_err(Error::Usage)?;
    let machine = Machine::new(args.root.as_deref());
    if !machine.has_joined(&args.name) {
        writeln!(out, "{} has not joined from this machine; nothing to do", args.name)?;
        return Ok(ExitCode::SUCCESS);
    }
    machine.stop(&args.name)?;
    for path in machine.remove(&args.name).map_err(Error::Usage)? {
        writeln!(out, "{} removed", path.display())?;
    }
    machine.reload()?;
    Ok(ExitCode::SUCCESS)
}

/// As if they had been typed.
#[cfg(test)]
pub fn arguments(name: &str, root: &std::path::Path) -> LeaveArgs {
    LeaveArgs { name: name.to_owned(), root: Some(root.to_owned()) }
}
