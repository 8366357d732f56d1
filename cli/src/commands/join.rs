//! `leno join`: this machine's service becomes part of the mesh.
//!
//! ```text
//! flags ─▶ sidecar.rs (what the sidecar is told, checked) ─▶ files of a systemd unit ─▶ machine.rs writes, starts
//!                                                        │                             readiness.rs waits
//!                                                        ╰─▶ --foreground: this process becomes the sidecar
//! ```

use std::{
    io::Write, os::unix::process::CommandExt, path::PathBuf, process::ExitCode, time::Duration,
};

use self::{
    machine::{Machine, Written},
    sidecar::{Sidecar, SidecarArgs},
};
use crate::error::Error;

pub mod machine;
pub mod readiness;
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

    /// Seconds to wait until the sidecar is ready: it has its certificate, and knows its service; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u32,
}

pub async fn run(args: &JoinArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
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
    if args.root.is_none() && args.wait > 0 {
        has_joined(&sidecar, args.wait, out).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// That the process runs says little: callers are sent here only when the mesh knows the service and the sidecar does, too.
async fn has_joined(sidecar: &Sidecar, seconds: u32, out: &mut impl Write) -> Result<(), Error> {
    let name = &sidecar.name;
    let limit = Duration::from_secs(seconds.into());
    readiness::wait(&sidecar.admin.to_string(), limit).await.map_err(|reason| {
        Error::Usage(format!(
            "{name} has not joined within {seconds} s, and goes on trying: it {reason}; \
             `journalctl -u leno-proxy@{name}` has what it says"
        ))
    })?;
    writeln!(out, "{name} has joined: callers are sent here")?;
    Ok(())
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
