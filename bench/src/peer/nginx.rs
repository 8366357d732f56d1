//! nginx, one worker. It speaks HTTP/2 downstream only; calls it passes upstream as HTTP/1.1,
//! except gRPC, for which it has a module.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::time::Instant;

use super::{
    Found, HOST, Missing, Mode, NGINX, Peer, Place, Protection, Running, STAMP_HEADER, Setup,
    debian,
};
use crate::identity::Identity;

const CONFIG: &str = "nginx.conf";
/// Debian builds opaque TCP as a module of another package.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub struct Nginx;

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        NGINX
    }

    fn find(&self) -> Result<Found, Missing> {
        debian("nginx", "-v")
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        place.write(CONFIG, &config(place, setup)?)?;
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running> {
        anyhow::ensure!(setup.calls_with().is_none(), "nginx compares DNS names, not SPIFFE IDs");
        anyhow::ensure!(
            setup.mode != Mode::Tcp || Path::new(STREAM_MODULE).exists(),
            "nginx lacks its stream module: apt-get install libnginx-mod-stream"
        );
        let prefix = place.path("");
        let prefix = prefix.to_str().context("a directory whose name is not text")?;
        // `-e`: before it has read its configuration it would log to the system's place.
        let arguments = ["-p", prefix, "-c", CONFIG, "-e", "stderr"];
        place.running(place.spawn(&found.program, &arguments)?)
    }

    fn reload(&self, running: &Running) -> Result<()> {
        let process = running.process.as_ref().context("nginx is not running")?;
        process.signal(Signal::HUP)
    }

    fn remark(&self, mode: Mode) -> Option<&'static str> {
        (mode == Mode::Http2)
            .then_some("nginx has no HTTP/2 to upstreams: it calls the origin over HTTP/1.1")
    }
}

fn upstream(setup: &Setup) -> String {
    let mut text = String::from("upstream origin {");
    let retries = setup.protection == Protection::Retries;
    let after = if retries { " max_fails=5 fail_timeout=30s" } else { "" };
    if retries {
        text += " least_conn;";
    }
    for origin in setup.instances() {
        text += &format!(" server {origin}{after};");
    }
    text += " keepalive 256; keepalive_requests 1000000000; }\n";
    if retries {
        text += "  proxy_next_upstream error timeout http_500 http_502 http_503 http_504;\n  \
                 proxy_next_upstream_tries 3;\n";
    }
    text
}

fn config(place: &Place, setup: &Setup) -> Result<String> {
    let (listen, admin, origin) = (place.listen, place.admin, setup.origin);
    let mut text =
        String::from("daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr error;\n");
    // nginx allocates them all at the start, so not more than the work needs.
    let connections = 2 * setup.connections + 64;
    if setup.mode == Mode::Tcp {
        write!(
            text,
            "load_module {STREAM_MODULE};\nevents {{ worker_connections {connections}; }}\n\
             stream {{\n  upstream origin {{ server {origin}; }}\n  \
             server {{ listen {listen} backlog=4096; proxy_pass origin; }}\n}}\n"
        )?;
        return Ok(text);
    }
    write!(
        text,
        "events {{ worker_connections {connections}; }}\n\
         http {{\n  access_log off;\n  tcp_nodelay on;\n  \
         client_body_temp_path body;\n  proxy_temp_path proxy;\n  fastcgi_temp_path fastcgi;\n  \
         uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n  \
         keepalive_timeout 300s;\n  keepalive_requests 1000000000;\n  \
         proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n  \
         proxy_set_header Host $host;\n  proxy_set_header X-Request-ID $request_id;\n  \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n  \
         grpc_set_header X-Request-ID $request_id;\n  \
         {}",
        upstream(setup)
    )?;
    if let Some(bytes) = setup.cache {
        // Answers are files to it: as cheap as it can have them. Not `tcp_nopush`: with it nginx leaves Nagle's algorithm
        // on, and the last bytes of 64 KiB, which are a little more than one segment here, wait 40 ms for an acknowledgement.
        write!(
            text,
            "  sendfile on;\n  open_file_cache max=20000;\n  \
             proxy_cache_path {} levels=1:2 keys_zone=all:16m max_size={bytes} use_temp_path=off;\n  \
             proxy_cache all;\n",
            place.path("cache").display()
        )?;
    }
    for service in 0..setup.services {
        write!(text, "  upstream service-{service} {{ ")?;
        for address in setup.workload_addresses(service) {
            write!(text, "server {address}; ")?;
        }
        writeln!(text, "}}")?;
    }
    let tls = if setup.accepts_with().is_some() { " ssl" } else { "" };
    let http2 = if setup.mode == Mode::Http1 { "" } else { " http2" };
    let pass = if setup.mode == Mode::Grpc { "grpc_pass grpc://" } else { "proxy_pass http://" };
    writeln!(
        text,
        "  server {{\n    listen {listen}{tls}{http2} backlog=4096;\n    server_name {HOST};"
    )?;
    if let Some(identity) = setup.accepts_with() {
        let Identity { certificate, key, roots, .. } = identity;
        writeln!(
            text,
            "    ssl_certificate {};\n    ssl_certificate_key {};\n    \
             ssl_client_certificate {};\n    ssl_verify_client on;\n    \
             ssl_protocols TLSv1.3;\n    proxy_max_temp_file_size 0;",
            certificate.display(),
            key.display(),
            roots.display()
        )?;
    }
    if setup.mode != Mode::Http1 {
        // Its HTTP/2 closes a connection after so many requests, too.
        writeln!(text, "    http2_max_concurrent_streams 1024;")?;
    }
    for route in 0..setup.routes {
        writeln!(text, "    location /route-{route} {{ {pass}origin; }}")?;
    }
    let stamp =
        setup.stamp.map_or_else(String::new, |stamp| format!("add_header {STAMP_HEADER} {stamp};"));
    writeln!(text, "    location / {{ {stamp} {pass}origin; }}\n  }}")?;
    writeln!(text, "  server {{ listen {admin}; location /status {{ stub_status; }} }}\n}}")?;
    Ok(text)
}
