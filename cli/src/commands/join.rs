//! `leno join`: this machine's service becomes part of the mesh.
//!
//! ```text
//! flags ─▶ sidecar.rs (what the sidecar is told, checked) ─▶ files of a systemd unit ─▶ machine.rs writes, starts
//!                                                        ╰─▶ --foreground: this process becomes the sidecar
//! ```

use std::{io::Write, os::unix::process::CommandExt, path::PathBuf, process::ExitCode};

use self::{
    machine::{Machine, Written},
    sidecar::{Sidecar, SidecarArgs},
};
use crate::error::Error;

pub mod machine;
pub mod sidecar;

/// Make this machine's service part of the mesh: keep its sidecar running as a systemd service
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// Become the sidecar instead of installing a service; ends with Ctrl-C
    #[arg(long, conflicts_with_all = ["dry_run", "root"])]
    foreground: bool,

    /// Only say what would be written and run
    #[arg(long)]
    dry_run: bool,

    /// Write the files below this folder and start nothing: for images of machines
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub fn run(args: &JoinArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let sidecar = Sidecar::new(&args.sidecar).map_err(Error::Usage)?;
    if args.foreground {
        return Err(become_the_sidecar(&sidecar));
    }
    let machine = Machine::new(args.root.as_deref());
    if args.dry_run {
        return dry_run(&machine, &sidecar, out);
    }
    machine.check(&sidecar).map_err(Error::Usage)?;
    let written = machine.write(&sidecar).map_err(Error::Usage)?;
    for Written { path, change } in &written {
        writeln!(out, "{} {}", path.display(), change.word())?;
    }
    machine.start(&sidecar.name, Written::any(&written), out)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns only when it fails.
fn become_the_sidecar(sidecar: &Sidecar) -> Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Error::Usage(format!("cannot tell where this program is: {error}")),
    };
    let error = std::process::Command::new(&program).args(sidecar.arguments()).exec();
    Error::Usage(format!("{}: {error}", program.display()))
}

fn dry_run(machine: &Machine, sidecar: &Sidecar, out: &mut impl Write) -> Result<ExitCode, Error> {
    for file in machine.files(sidecar).map_err(Error::Usage)? {
        writeln!(out, "# {} (mode {:o})", file.path.display(), file.mode)?;
        match file.secret {
            true => writeln!(out, "(the token)\n")?,
            false => writeln!(out, "{}", file.contents)?,
        }
    }
    for command in machine.commands_to_start(&sidecar.name) {
        writeln!(out, "# systemctl {}", command.join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
