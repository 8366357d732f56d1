//! Varnish, on one core. It has nothing but its cache, so only the suite `cache` asks it.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Found, Missing, Mode, Peer, Place, Running, Setup, VARNISH, look_up, version_of};

const CONFIG: &str = "default.vcl";

pub struct Varnish;

impl Peer for Varnish {
    fn name(&self) -> &'static str {
        VARNISH
    }

    fn find(&self) -> Result<Found, Missing> {
        let missing = |reason| Missing { reason, remedy: "apt-get install varnish".to_owned() };
        let program = look_up("varnishd");
        let program = program.ok_or_else(|| missing("varnishd is not installed".to_owned()))?;
        let version = version_of(&program, "-V").map_err(missing)?;
        Ok(Found { program, version })
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        let origin = setup.origin;
        let text = format!(
            "vcl 4.1;\nbackend default {{ .host = \"{}\"; .port = \"{}\"; }}\n",
            origin.ip(),
            origin.port()
        );
        place.write(CONFIG, &text)?;
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running> {
        anyhow::ensure!(setup.mode == Mode::Http1, "varnish is a cache for HTTP");
        let store = format!("malloc,{}M", setup.cache.context("varnish without a cache")? >> 20);
        let listen = place.listen.to_string();
        let work = place.path("varnish");
        let work = work.to_str().context("a directory whose name is not text")?;
        // One pool of threads is for one core; they are many because each request has one.
        let arguments = [
            "-F",
            "-j",
            "none",
            "-n",
            work,
            "-a",
            &listen,
            "-f",
            place.path(CONFIG).to_str().context("a directory whose name is not text")?,
            "-s",
            &store,
            "-p",
            "thread_pools=1",
        ]
        .map(str::to_owned);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        place.running(place.spawn(&found.program, &arguments)?)
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        anyhow::bail!("varnish takes up another configuration by its command line only")
    }
}
