//! Reading local files for a command: problems go to standard error, each with its place.

use std::process::ExitCode;

use crate::{
    error::Error,
    files::{self, FileArgs, Manifest},
};

/// The manifests, or `None` (with everything wrong printed) when not all of them are valid: a set that is
/// applied in part is not what its author meant.
pub fn load_valid(args: &FileArgs, otherwise: &str) -> Result<Option<Vec<Manifest>>, Error> {
    let loaded = files::load(args)?;
    if loaded.problems.is_empty() {
        return Ok(Some(loaded.manifests));
    }
    for problem in &loaded.problems {
        eprintln!("error: {problem}");
    }
    eprintln!("{otherwise}");
    Ok(None)
}

/// Invalid input or a refusal.
pub const FAILED: ExitCode = ExitCode::FAILURE;
