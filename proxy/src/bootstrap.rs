//! What the proxy is told when it starts: flags, each also an environment variable. The only reader of the environment.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, ValueEnum};

use crate::identity::{Files, Source, control_plane};

/// Flags of `leno proxy`.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// YAML file with the mesh's resources; read again whenever it changes.
    #[arg(
        long,
        env = "LENO_CONFIG",
        value_name = "FILE",
        conflicts_with = "control_plane",
        required_unless_present = "control_plane"
    )]
    pub config: Option<PathBuf>,
    /// Address of the control plane's xDS port.
    #[arg(long, env = "LENO_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<String>,
    /// File with the token for the control plane: with --ca-file the join token for the first certificate.
    #[arg(long, env = "LENO_TOKEN_FILE", value_name = "FILE", requires = "control_plane")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the roots by which the control plane is known (its `root.pem`, or `leno ca bundle`). With it the
    /// control plane is spoken to over TLS and asked for a certificate.
    #[arg(
        long,
        env = "LENO_CA_FILE",
        value_name = "FILE",
        requires = "control_plane",
        conflicts_with = "config"
    )]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the proxy's own certificate, leaf first, instead of one from the control plane. Read again when
    /// it changes, as are the two below.
    #[arg(
        long,
        env = "LENO_TLS_CERTIFICATE",
        value_name = "FILE",
        requires_all = ["tls_key", "tls_roots"]
    )]
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with its private key, readable by its owner only.
    #[arg(long, env = "LENO_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the roots that other proxies' certificates must lead to.
    #[arg(long, env = "LENO_TLS_ROOTS", value_name = "FILE", requires = "tls_certificate")]
    pub tls_roots: Option<PathBuf>,
    /// Unix socket of a SPIFFE Workload API (SPIRE) from which the certificate comes instead.
    #[arg(
        long,
        env = "LENO_WORKLOAD_API",
        value_name = "SOCKET",
        conflicts_with = "tls_certificate"
    )]
    pub workload_api: Option<PathBuf>,
    /// Where the application sends its calls.
    #[arg(long, env = "LENO_OUTBOUND", value_name = "ADDR", default_value = "127.0.0.1:15001")]
    pub outbound: SocketAddr,
    /// Where others reach the application.
    #[arg(long, env = "LENO_INBOUND", value_name = "ADDR", default_value = "0.0.0.0:15006")]
    pub inbound: SocketAddr,
    /// Where operators look.
    #[arg(long, env = "LENO_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Where readiness is shown to others, and probes of the application are answered; nowhere but at --admin when
    /// left out.
    #[arg(long, env = "LENO_READY", value_name = "ADDR")]
    pub ready: Option<SocketAddr>,
    /// Where metrics are shown to others; nowhere but at --admin when left out.
    #[arg(long, env = "LENO_METRICS", value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Probes of the application that are answered at --ready, as JSON; written by injection.
    #[arg(long, env = "LENO_PROBES", value_name = "JSON", requires = "ready")]
    pub probes: Option<String>,
    /// Worker threads; two, or the number of cores if that is less.
    #[arg(long, env = "LENO_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Name of the workload beside which the proxy stands.
    #[arg(long, env = "LENO_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Its namespace. Short host names are resolved in it.
    #[arg(long, env = "LENO_NAMESPACE", value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// A service the workload serves; with this it is registered with the control plane. May be repeated.
    #[arg(
        long = "service",
        env = "LENO_SERVICES",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "name",
        conflicts_with = "config"
    )]
    pub services: Vec<String>,
    /// A port of the application by the name of its service port: http=9001. May be repeated.
    #[arg(
        long = "app",
        env = "LENO_APP",
        value_name = "PORT_NAME=PORT",
        value_delimiter = ',',
        value_parser = pair::<u16>,
        requires = "services"
    )]
    pub ports: Vec<(String, u16)>,
    /// A label of the workload: version=v1. May be repeated.
    #[arg(long = "label", env = "LENO_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = pair::<String>)]
    pub labels: Vec<(String, String)>,
    /// Address under which others reach the inbound port; that of --inbound when left out. Has to be given where
    /// --inbound is all addresses and the control plane is elsewhere.
    #[arg(long, env = "LENO_ADDRESS", value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Address at which the application listens; 127.0.0.1 when left out, with --capture that of --address.
    #[arg(long, env = "LENO_APP_ADDRESS", value_name = "IP")]
    pub app_address: Option<IpAddr>,
    /// The kernel leads the application's connections, both ways, to the ports of --outbound and --inbound
    /// (`leno redirect install`): they go where they were going before that.
    #[arg(long, env = "LENO_CAPTURE")]
    pub capture: bool,
    /// With --capture: what becomes of connections and requests of the application to what the mesh does not know.
    #[arg(
        long,
        env = "LENO_UNKNOWN_DESTINATIONS",
        value_enum,
        default_value_t = UnknownDestinations::Pass,
        requires = "capture"
    )]
    pub unknown_destinations: UnknownDestinations,
    /// Service account of the workload.
    #[arg(long, env = "LENO_SERVICE_ACCOUNT", value_name = "NAME")]
    pub service_account: Option<String>,
    /// Failure domain of the workload.
    #[arg(long, env = "LENO_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Seconds the workload stays registered after the control plane has lost sight of its proxy.
    #[arg(long, env = "LENO_LEASE", value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub lease: u32,
    /// Folder for the last good configuration of the control plane, and for modules of plugins; neither is kept when
    /// left out.
    #[arg(long, env = "LENO_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Folder for the modules of plugins, so that they need not be fetched and compiled again; `modules` in
    /// --state-dir when left out, and none without either.
    #[arg(long, env = "LENO_MODULE_CACHE", value_name = "DIR")]
    pub module_cache: Option<PathBuf>,
    /// Access log.
    #[arg(long, env = "LENO_ACCESS_LOG", value_enum, default_value_t = AccessLog::Off)]
    pub access_log: AccessLog,
    /// File for the access log; standard output when left out.
    #[arg(long, env = "LENO_ACCESS_LOG_FILE", value_name = "FILE", requires = "access_log")]
    pub access_log_file: Option<PathBuf>,
    /// Log filter: info, or info,leno_proxy=debug.
    #[arg(long, env = "LENO_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Log lines as JSON.
    #[arg(long, env = "LENO_LOG_JSON")]
    pub log_json: bool,
    /// Downstream connections at once, more are reset; 20,000 or what open files allow when left out.
    #[arg(long, env = "LENO_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// Largest request head in KiB.
    #[arg(long, env = "LENO_MAX_HEAD_KIB", value_name = "KIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=1024))]
    pub max_head_kib: u16,
    /// Most fields in a request head.
    #[arg(long, env = "LENO_MAX_HEADERS", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(16..=1024))]
    pub max_headers: u16,
    /// Seconds in which a request head must arrive, and after which an idle downstream connection is closed.
    #[arg(long, env = "LENO_HEAD_TIMEOUT", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub head_timeout: u32,
    /// Seconds that a caller may take nothing of its answer before it is given up.
    #[arg(long, env = "LENO_SEND_TIMEOUT", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub send_timeout: u32,
    /// Seconds that what is under way may take after the proxy was asked to stop.
    #[arg(long, env = "LENO_DRAIN", value_name = "SECONDS", default_value_t = 30)]
    pub drain: u32,
    /// Seconds between "not ready" and the end of accepting, for load balancers to notice.
    #[arg(long, env = "LENO_DRAIN_DELAY", value_name = "SECONDS", default_value_t = 0)]
    pub drain_delay: u32,
}

/// A control plane elsewhere must be known by its certificate: what it says is obeyed, and what it is told are secrets.
#[derive(Debug, thiserror::Error)]
#[error(
    "the control plane {0} is not on this machine: give its roots with --ca-file FILE, so that nobody else can pose as it"
)]
pub struct Unproven(String);

/// Nobody but this machine would reach what it registers.
#[derive(Debug, thiserror::Error)]
#[error(
    "the control plane {0} is not on this machine, and the inbound port listens on all addresses: say with --address IP \
     under which one others reach it"
)]
pub struct Unreachable(String);

/// What becomes of what the application sends to somebody whom the mesh does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownDestinations {
    /// It goes there.
    Pass,
    /// It is refused.
    Refuse,
}

/// What the access log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// None is written.
    Off,
    /// One line of text an exchange.
    Text,
    /// One JSON object an exchange.
    Json,
}

impl Options {
    /// Workers to start.
    pub fn worker_count(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.workers.map_or(cores.min(2), usize::from)
    }

    /// Where the application listens. What is led to us was meant for the address of this machine, and an application
    /// may listen at that one only.
    pub fn application(&self) -> IpAddr {
        let own = self.address.filter(|_| self.capture);
        self.app_address.or(own).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Address under which others reach the inbound port, which listens at `inbound`.
    ///
    /// # Errors
    /// Where it cannot be known, and others are told of it.
    pub fn advertised(&self, inbound: SocketAddr) -> Result<IpAddr, Unreachable> {
        let elsewhere = || self.control_plane.as_ref().filter(|address| !is_loopback(address));
        match (self.address, inbound.ip()) {
            (Some(address), _) => Ok(address),
            (None, ip) if !ip.is_unspecified() => Ok(ip),
            (None, _) => match elsewhere() {
                None => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                Some(control_plane) => Err(Unreachable(control_plane.clone())),
            },
        }
    }

    /// Where the proxy's certificate comes from; `proxy` is what people know it by. Files and a Workload API come before
    /// the control plane. None when no source was named: the proxy then has no identity.
    ///
    /// # Errors
    /// For a control plane that is not on this machine and could be anybody.
    pub fn identity_source(&self, proxy: &str) -> Result<Option<Source>, Unproven> {
        if let Some(address) = self.control_plane.as_ref().filter(|_| self.ca_file.is_none())
            && !is_loopback(address)
        {
            return Err(Unproven(address.clone()));
        }
        if let (Some(certificate), Some(key), Some(roots)) =
            (&self.tls_certificate, &self.tls_key, &self.tls_roots)
        {
            let (certificate, key, roots) = (certificate.clone(), key.clone(), roots.clone());
            return Ok(Some(Source::Files(Files { certificate, key, roots })));
        }
        if let Some(socket) = self.workload_api.clone() {
            return Ok(Some(Source::WorkloadApi { socket }));
        }
        let (Some(address), Some(ca_file)) = (&self.control_plane, &self.ca_file) else {
            return Ok(None);
        };
        Ok(Some(Source::ControlPlane(control_plane::Options {
            address: address.clone(),
            ca_file: ca_file.clone(),
            token_file: self.token_file.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone().unwrap_or_else(|| "default".to_owned()),
            proxy: proxy.to_owned(),
            ttl: None,
        })))
    }
}

/// Whether nobody but this machine can be at `address`, which is a host with a port.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse::<IpAddr>();
    ip.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip| ip.to_canonical().is_loopback())
}

/// Reads `key=value`.
fn pair<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` must be NAME=VALUE"))?;
    let value = value.parse().map_err(|error| format!("`{value}`: {error}"))?;
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(flags: &str) -> Result<Options, clap::Error> {
        let words = ["proxy"].into_iter().chain(flags.split_whitespace());
        Command::try_parse_from(words).map(|command| command.options)
    }

    fn source(flags: &str) -> Result<Option<Source>, Unproven> {
        options(flags).unwrap().identity_source("orders-1")
    }

    #[test]
    fn an_identity_needs_a_source() {
        assert!(source("--config mesh.yaml").unwrap().is_none());
        assert!(source("--control-plane 127.0.0.1:15012").unwrap().is_none());
        let asked = source(
            "--control-plane cp:15012 --ca-file root.pem --token-file token --namespace shop \
             --service-account orders",
        );
        let Ok(Some(Source::ControlPlane(asked))) = asked else { panic!("{asked:?}") };
        assert_eq!((&*asked.namespace, &*asked.service_account), ("shop", "orders"));
        assert_eq!((&*asked.proxy, &*asked.address), ("orders-1", "cp:15012"));
        let files = "--tls-certificate a --tls-key b --tls-roots c";
        let found = source(&format!("--config mesh.yaml {files}"));
        assert!(matches!(found, Ok(Some(Source::Files(_)))));
        let found = source(&format!("--control-plane cp:15012 --ca-file root.pem {files}"));
        assert!(matches!(found, Ok(Some(Source::Files(_)))), "named files come first");
        let found = source("--config mesh.yaml --workload-api /run/spire.sock");
        assert!(matches!(found, Ok(Some(Source::WorkloadApi { .. }))));
    }

    #[test]
    fn the_application_is_where_callers_meant_it() {
        for (flags, expected) in [
            ("", "127.0.0.1"),
            ("--address 10.0.0.7", "127.0.0.1"),
            ("--capture", "127.0.0.1"),
            ("--capture --address 10.0.0.7", "10.0.0.7"),
            ("--capture --address 10.0.0.7 --app-address ::1", "::1"),
        ] {
            let options = options(&format!("--config mesh.yaml {flags}")).unwrap();
            assert_eq!(options.application().to_string(), expected, "{flags}");
        }
    }

    #[test]
    fn a_control_plane_elsewhere_must_be_proven() {
        for address in ["cp:15012", "10.0.0.1:15012", "[2001:db8::1]:15012", "127.evil:15012"] {
            let error = source(&format!("--control-plane {address}")).unwrap_err();
            assert!(error.to_string().contains("--ca-file"), "{error}");
        }
        for address in ["localhost:15012", "127.0.0.1:15012", "[::1]:15012"] {
            assert!(source(&format!("--control-plane {address}")).is_ok(), "{address}");
        }
    }

    #[test]
    fn what_is_registered_can_be_reached() {
        for (flags, inbound, expected) in [
            ("--control-plane 127.0.0.1:1", "0.0.0.0:15006", Some("127.0.0.1")),
            ("--control-plane cp:1", "10.0.0.7:15006", Some("10.0.0.7")),
            ("--control-plane cp:1 --address 10.0.0.8", "0.0.0.0:15006", Some("10.0.0.8")),
            ("--control-plane cp:1", "[::]:15006", None),
        ] {
            let found = options(flags).unwrap().advertised(inbound.parse().unwrap());
            let found = found.map(|address| address.to_string());
            assert_eq!(found.as_deref().ok(), expected, "{flags}");
        }
    }

    #[test]
    fn what_would_have_no_effect_is_refused() {
        for flags in [
            "--config mesh.yaml --name a --service orders",
            "--control-plane 127.0.0.1:1 --app http=9001",
            "--config mesh.yaml --unknown-destinations refuse",
            "--config mesh.yaml --access-log-file log",
        ] {
            assert!(options(flags).is_err(), "{flags}");
        }
    }

    #[test]
    fn half_a_source_is_refused() {
        for flags in [
            "--config mesh.yaml --tls-certificate a",
            "--config mesh.yaml --tls-certificate a --tls-key b",
            "--config mesh.yaml --tls-key b",
            "--config mesh.yaml --tls-certificate a --tls-key b --tls-roots c --workload-api d",
            "--config mesh.yaml --ca-file root.pem",
        ] {
            assert!(options(flags).is_err(), "{flags}");
        }
    }
}
