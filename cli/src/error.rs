//! What can go wrong with a command, in words that say what to do.

use std::io;

use crate::{api_client, files, http_client};

/// Why a command ended early. Problems of single resources are printed where they are found instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error(transparent)]
    Api(#[from] api_client::Error),
    #[error(transparent)]
    Http(#[from] http_client::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("the answer of {from} cannot be read: {source}")]
    Unreadable { from: String, source: serde_json::Error },
}

impl Error {
    /// The reader of our output has gone away (`leno get ... | head`): nothing to complain about.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
