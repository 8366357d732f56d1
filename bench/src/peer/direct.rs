//! No proxy at all.

use std::path::PathBuf;

use anyhow::Result;
use std::time::Instant;

use super::{DIRECT, Found, Missing, Peer, Place, Running, Setup};

pub struct Direct;

impl Peer for Direct {
    fn name(&self) -> &'static str {
        DIRECT
    }

    fn find(&self) -> Result<Found, Missing> {
        Ok(Found { program: PathBuf::new(), version: "callers reach the origin".to_owned() })
    }

    fn configure(&self, _place: &Place, _setup: &Setup) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn start(&self, _found: &Found, _place: &Place, setup: &Setup) -> Result<Running> {
        Ok(Running {
            process: None,
            _beside: Vec::new(),
            partner: None,
            address: setup.origin,
            tunnel: None,
        })
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        anyhow::bail!("there is nothing to reload")
    }
}
