//! Why the control plane cannot start or go on.

use std::{io, net::SocketAddr};

use crate::{access, ca, kubernetes, store, webhook};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot listen on {address} for {purpose}: {reason}. Stop what uses that address, or choose another with {flag}"
    )]
    Bind { address: SocketAddr, purpose: &'static str, flag: &'static str, reason: io::Error },
    #[error("cannot tell where a port listens: {0}")]
    Address(io::Error),
    #[error(transparent)]
    Store(#[from] store::OpenError),
    #[error("the certificate authority cannot start: {0}")]
    Authority(#[from] ca::Error),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::Error),
    #[error(transparent)]
    Tokens(#[from] access::TokenError),
    #[error(transparent)]
    Logs(#[from] leno_daemon::logs::Error),
    #[error(transparent)]
    Webhook(#[from] webhook::Error),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("{task} ended unexpectedly: {reason}")]
    Ended { task: &'static str, reason: String },
}
