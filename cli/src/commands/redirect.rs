//! `leno redirect`: the rules of the kernel that lead an application's connections through its sidecar.

use std::{io::Write, process::ExitCode};

use leno_redirect::RedirectArgs;

use crate::error::Error;

/// Installs, removes or shows them.
pub fn run(args: &RedirectArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    match leno_redirect::execute(&args.command, out) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(leno_redirect::Error::Write(error)) => Err(Error::Output(error)),
        Err(error) => Err(Error::Usage(error.to_string())),
    }
}
