//! `leno control-plane`: the same as the program `leno-control-plane`.

use std::process::ExitCode;

use crate::error::Error;

pub fn run(settings: leno_control_plane::Settings) -> Result<ExitCode, Error> {
    let runtime = leno_control_plane::runtime();
    let ended = runtime.map_err(Error::Runtime)?.block_on(leno_control_plane::run(settings));
    ended.map_err(|error| Error::Usage(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
