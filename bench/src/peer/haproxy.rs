//! HAProxy, one thread, in master-worker mode (the mode in which it reloads).

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::time::Instant;

use super::{
    Found, HAPROXY, HOST, Missing, Mode, Peer, Place, Protection, Running, STAMP_HEADER, Setup,
    debian,
};

const CONFIG: &str = "haproxy.cfg";

pub struct Haproxy;

impl Peer for Haproxy {
    fn name(&self) -> &'static str {
        HAPROXY
    }

    fn find(&self) -> Result<Found, Missing> {
        debian("haproxy", "-v")
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        place.write(CONFIG, &config(place, setup)?)?;
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, _setup: &Setup) -> Result<Running> {
        // `-W`: a master that starts workers; the worker gets the listening sockets of the last one
        // over the master's own socket pair (`expose-fd listeners` is implied for reloads).
        place.running(place.spawn(&found.program, &["-W", "-f", CONFIG])?)
    }

    fn reload(&self, running: &Running) -> Result<()> {
        let process = running.process.as_ref().context("haproxy is not running")?;
        process.signal(Signal::USR2)
    }
}

/// Callers must show a certificate of our root; whose it is would be a rule for requests.
fn accept(setup: &Setup) -> String {
    setup.accepts_with().map_or_else(String::new, |identity| {
        format!(
            " ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3 alpn http/1.1",
            identity.both.display(),
            identity.roots.display()
        )
    })
}

/// The chain is checked, but not who it is: with a server name it would look for that as a DNS name.
fn connect(setup: &Setup) -> String {
    setup.calls_with().map_or_else(String::new, |identity| {
        format!(
            " ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3 alpn http/1.1",
            identity.both.display(),
            identity.roots.display()
        )
    })
}

fn backend(protection: Protection) -> &'static str {
    match protection {
        Protection::Defaults => "",
        Protection::Retries => {
            "  balance leastconn\n  retries 2\n  option redispatch 1\n  \
             retry-on all-retryable-errors\n  \
             default-server check inter 1s observe layer7 error-limit 5 on-error mark-down\n"
        }
        // The queue is the limit's: what waits longer is refused.
        Protection::Limit(_) => "  timeout queue 100ms\n",
    }
}

fn config(place: &Place, setup: &Setup) -> Result<String> {
    let (listen, admin, origin) = (place.listen, place.admin, setup.origin);
    let mut text = String::from(
        "global\n  nbthread 1\n\n\
         defaults\n  timeout connect 1s\n  timeout client 300s\n  timeout server 300s\n",
    );
    if setup.mode == Mode::Tcp {
        write!(
            text,
            "  mode tcp\n\n\
             frontend in\n  bind {listen}\n  default_backend origin\n\n\
             backend origin\n  server origin {origin}\n"
        )?;
    } else {
        let protocol = if setup.mode == Mode::Http1 { "" } else { " proto h2" };
        let (accept, connect) = (accept(setup), connect(setup));
        write!(
            text,
            "  mode http\n  http-reuse always\n\n\
             frontend in\n  bind {listen}{accept}{protocol}\n  \
             unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid\n  \
             unique-id-header x-request-id\n  option forwardfor\n"
        )?;
        // A map is what the manual recommends for many routes; a chain of ACLs would be walked.
        if setup.routes > 0 {
            let map: String =
                (0..setup.routes).map(|route| format!("/route-{route} origin\n")).collect();
            let map = place.write("routes.map", &map)?;
            writeln!(
                text,
                "  use_backend %[path,map_beg({})] if {{ req.hdr(host) -i {HOST} }} \
                 {{ path,map_beg({}) -m found }}",
                map.display(),
                map.display()
            )?;
        }
        if let Some(stamp) = setup.stamp {
            writeln!(text, "  http-response set-header {STAMP_HEADER} {stamp}")?;
        }
        write!(
            text,
            "  use_backend origin if {{ req.hdr(host) -i {HOST} }}\n\n\
             backend origin\n"
        )?;
        text.push_str(backend(setup.protection));
        let limit = match setup.protection {
            Protection::Limit(threads) => format!(" maxconn {threads}"),
            Protection::Defaults | Protection::Retries => String::new(),
        };
        for (at, origin) in setup.instances().enumerate() {
            writeln!(text, "  server origin-{at} {origin}{connect}{protocol}{limit}")?;
        }
    }
    write!(
        text,
        "\nfrontend statistics\n  mode http\n  bind {admin}\n  \
         http-request use-service prometheus-exporter if {{ path /metrics }}\n"
    )?;
    for service in 0..setup.services {
        writeln!(text, "\nbackend service-{service}")?;
        for (number, address) in setup.workload_addresses(service).enumerate() {
            writeln!(text, "  server workload-{number} {address}")?;
        }
    }
    Ok(text)
}
