//! Other caches, measured for the table: set up to cache, as their manuals say, and otherwise left as they are.

use std::{
    env,
    fs::{self, Permissions},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    mesh::PATIENCE,
    results::{Counts, Row, parse_rows, table},
    suite::{Choice, Suite},
};

/// One program, how it says its version, and how it is configured and started.
struct Peer {
    name: &'static str,
    program: &'static str,
    version: &'static str,
    /// Files by name, and arguments; `LISTEN`, `ORIGIN` (ports) and `FOLDER` are put in.
    files: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
    /// What its line of the table says beside name and version.
    remark: &'static str,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "nginx",
        program: "nginx",
        version: "-v",
        files: &[(
            "nginx.conf",
            "daemon off; worker_processes 1; pid FOLDER/pid; error_log FOLDER/error.log;\n\
             events { worker_connections 2048; }\n\
             http {\n  access_log off;\n  proxy_temp_path FOLDER/temporary;\n  \
             proxy_cache_path FOLDER/cache levels=1:2 keys_zone=all:8m max_size=1000m inactive=600m;\n  \
             server {\n    listen 127.0.0.1:LISTEN;\n    location / {\n      \
             proxy_pass http://127.0.0.1:ORIGIN;\n      proxy_cache all;\n      \
             proxy_cache_revalidate on;\n    }\n  }\n}\n",
        )],
        arguments: &["-c", "FOLDER/nginx.conf"],
        remark: "`proxy_cache`",
    },
    Peer {
        name: "Varnish",
        program: "varnishd",
        version: "-V",
        files: &[(
            "default.vcl",
            "vcl 4.1; backend default { .host = \"127.0.0.1\"; .port = \"ORIGIN\"; }\n",
        )],
        // Without a default lifetime, as the suite asks for it.
        arguments: &[
            "-F",
            "-j",
            "none",
            "-n",
            "FOLDER/work",
            "-a",
            "127.0.0.1:LISTEN",
            "-f",
            "FOLDER/default.vcl",
            "-p",
            "default_ttl=0",
            "-p",
            "default_grace=0",
            "-p",
            "default_keep=3600",
            "-s",
            "malloc,64M",
        ],
        remark: "",
    },
    Peer {
        name: "HAProxy",
        program: "haproxy",
        version: "-v",
        files: &[(
            "haproxy.cfg",
            "global\n  nbthread 1\n\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  \
             timeout server 30s\n\ncache all\n  total-max-size 64\n  max-object-size 1000000\n  max-age 3600\n  \
             process-vary on\n\nfrontend in\n  bind 127.0.0.1:LISTEN\n  http-request cache-use all\n  \
             http-response cache-store all\n  default_backend origin\n\n\
             backend origin\n  server origin 127.0.0.1:ORIGIN\n",
        )],
        arguments: &["-f", "FOLDER/haproxy.cfg"],
        remark: "`cache`",
    },
    Peer {
        name: "Envoy",
        program: "envoy",
        version: "--version",
        files: &[("envoy.yaml", ENVOY)],
        arguments: &[
            "-c",
            "FOLDER/envoy.yaml",
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "-l",
            "error",
        ],
        remark: "HTTP cache filter",
    },
    Peer {
        name: "Apache Traffic Server",
        program: "traffic_server",
        version: "--version",
        files: &[
            ("runroot.yaml", TRAFFIC_SERVER_ROOT),
            ("etc/remap.config", "map / http://127.0.0.1:ORIGIN/\n"),
            (
                "etc/ip_allow.yaml",
                "ip_allow: [{apply: in, ip_addrs: 127.0.0.1, action: allow, methods: ALL}]\n",
            ),
            ("etc/storage.config", "FOLDER/cache 64M\n"),
            (
                "etc/records.config",
                // Other than in the suite's own image, a response needs explicit freshness to be kept: its tests want
                // that.
                "CONFIG proxy.config.http.server_ports STRING LISTEN:ip-in=127.0.0.1\n\
                 CONFIG proxy.config.http.cache.http INT 1\n\
                 CONFIG proxy.config.http.cache.required_headers INT 1\n\
                 CONFIG proxy.config.url_remap.pristine_host_hdr INT 1\n\
                 CONFIG proxy.config.reverse_proxy.enabled INT 1\n\
                 CONFIG proxy.config.admin.user_id STRING trafficserver\n",
            ),
            ("cache/empty", ""),
            ("log/empty", ""),
            ("run/empty", ""),
        ],
        arguments: &["--run-root=FOLDER/runroot.yaml"],
        remark: "",
    },
];

const ENVOY: &str = "\
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: origin}}]}]
          http_filters:
          - name: envoy.filters.http.cache
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.cache.v3.CacheConfig
              typed_config:
                '@type': type.googleapis.com/envoy.extensions.http.cache.simple_http_cache.v3.SimpleHttpCacheConfig
          - name: envoy.filters.http.router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: origin
    load_assignment:
      cluster_name: origin
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ORIGIN}}}}]}]
";

const TRAFFIC_SERVER_ROOT: &str = "\
prefix: /usr
exec_prefix: /usr
bindir: /usr/bin
sbindir: /usr/sbin
sysconfdir: FOLDER/etc
datadir: /usr/share/trafficserver
includedir: /usr/include
libdir: /usr/lib/trafficserver
libexecdir: /usr/lib/trafficserver/modules
localstatedir: FOLDER/run
runtimedir: FOLDER/run
logdir: FOLDER/log
cachedir: FOLDER/cache
";

/// A running peer; ended when dropped.
struct Running {
    child: Child,
    _folder: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(&self, origin: u16) -> (Running, String) {
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let fill = |text: &str| {
            text.replace("LISTEN", &listen.port().to_string())
                .replace("ORIGIN", &origin.to_string())
                .replace("FOLDER", folder.path().to_str().unwrap())
        };
        for (name, text) in self.files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, fill(text)).unwrap();
            // Some give up being root, and still write there.
            for folder in [folder.path(), path.parent().unwrap()] {
                fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
            }
        }
        let child = Command::new(self.program)
            .args(self.arguments.iter().map(|argument| fill(argument)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; install it first", self.program));
        let running = Running { child, _folder: folder };
        wait_for(listen);
        (running, format!("http://{listen}"))
    }

    /// As the program says it: the first thing that looks like one.
    fn version(&self) -> String {
        let output = Command::new(self.program).arg(self.version).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let parts = said.split(|c: char| !c.is_ascii_digit() && c != '.');
        let version =
            parts.map(|part| part.trim_matches('.')).find(|part| part.matches('.').count() >= 1);
        version.unwrap_or_else(|| panic!("no version in {said}")).to_owned()
    }

    fn title(&self) -> String {
        let remark =
            if self.remark.is_empty() { String::new() } else { format!(", {}", self.remark) };
        format!("{} {}{remark}", self.name, self.version())
    }
}

fn wait_for(address: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nothing listens at {address}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn rows() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/http_cache/peers.md")
}

/// Measures one cache and puts its line into the table; `accept` brings it into the page.
#[test]
#[ignore = "for people: needs CACHE_PEER=<program> and the program"]
fn measure_peer() {
    let chosen = env::var("CACHE_PEER").expect("CACHE_PEER=<program> says which");
    let peer = PEERS.iter().find(|peer| peer.program == chosen);
    let known: Vec<&str> = PEERS.iter().map(|peer| peer.program).collect();
    let peer = peer.unwrap_or_else(|| panic!("{chosen} is none of {known:?}"));
    let outcomes = Suite::install().run(Choice::default(), |origin| peer.start(origin));
    let row = Row { cache: peer.title(), counts: Counts::of(&outcomes) };
    println!("{}", table(std::slice::from_ref(&row)));
    let mut all = parse_rows(&fs::read_to_string(rows()).unwrap()).unwrap();
    all.retain(|other| !other.cache.starts_with(peer.name));
    all.push(row);
    all.sort_by_key(|row| std::cmp::Reverse(row.counts.required.passed));
    fs::write(rows(), table(&all)).unwrap();
}
