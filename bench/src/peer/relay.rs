//! The null relay, `src/relay.rs`, as a process of its own.

use anyhow::{Context as _, Result};
use std::time::Instant;

use super::{Found, Missing, Peer, Place, RELAY, Running, Setup};

pub struct Relay;

impl Peer for Relay {
    fn name(&self) -> &'static str {
        RELAY
    }

    fn find(&self) -> Result<Found, Missing> {
        let program = std::env::current_exe().map_err(|error| Missing {
            reason: format!("the rig cannot find itself: {error}"),
            remedy: "run it from where it was built".to_owned(),
        })?;
        Ok(Found { program, version: "epoll, read and write, nothing parsed".to_owned() })
    }

    fn configure(&self, _place: &Place, _setup: &Setup) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running> {
        let upstream = setup.origin.to_string();
        let mut process = place.spawn(&found.program, &["relay", "--to", &upstream])?;
        let line = process.first_line()?;
        let addresses: crate::relay::Addresses =
            serde_json::from_str(&line).context("read the relay's address")?;
        Ok(Running {
            process: Some(process),
            _beside: Vec::new(),
            partner: None,
            address: addresses.outbound,
            tunnel: None,
        })
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        anyhow::bail!("the null relay has no configuration")
    }
}
