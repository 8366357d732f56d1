//! What a sidecar is told, by flags when it runs in the foreground and by a file of its environment when systemd runs it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
};

use clap::Parser;

/// A certificate bundle or a token is far smaller; a wrong file may not be.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Kubernetes' limit for names, which workloads keep.
const MAX_NAME: usize = 63;
/// Seconds that the sidecar goes on after it has told that it leaves: callers hear of it in well under one, and must not be
/// cut off before.
const DRAIN_DELAY: u32 = 5;
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Flags of `leno join` that the sidecar gets.
#[derive(Clone, Debug, clap::Args)]
pub struct SidecarArgs {
    /// Address of the control plane's xDS port
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: String,
    /// File with the join token: `leno token create NAME --role workload -n NAMESPACE --service-account ACCOUNT`
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// PEM file with the roots by which the control plane is known: its root.pem, or `leno ca bundle`
    #[arg(long, value_name = "FILE")]
    ca_file: PathBuf,
    /// A service that this machine's workload serves. May be repeated
    #[arg(long = "service", required = true, value_name = "NAME")]
    services: Vec<String>,
    /// A port of the application by the name of its service port: http=9001. May be repeated
    #[arg(long = "app", required = true, value_name = "PORT_NAME=PORT")]
    ports: Vec<String>,
    /// Name of the workload [default: the first service and this machine's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// Its service account, the one that the token is for [default: default]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Address under which other machines reach this one [default: the one it reaches the control plane from]
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Address at which the application listens
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    app_address: IpAddr,
    /// A label of the workload: version=v1. May be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Failure domain of the workload
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Where the application sends its calls
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15001")]
    outbound: SocketAddr,
    /// Where others reach the application
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15006")]
    inbound: SocketAddr,
    /// Where operators look
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// A sidecar that can be started: everything it is told has been read and checked.
#[derive(Debug)]
pub struct Sidecar {
    pub name: String,
    pub roots: String,
    pub token: String,
    /// Where it says whether it is ready.
    pub admin: SocketAddr,
    ca_file: PathBuf,
    token_file: PathBuf,
    /// Flag of the sidecar, its variable, its value.
    told: Vec<(&'static str, &'static str, String)>,
}

/// The sidecar's flags, read as it will read them.
#[derive(Debug, clap::Parser)]
struct Proxy {
    #[command(flatten)]
    _options: leno_proxy::Options,
}

impl Sidecar {
    /// # Errors
    /// The first thing that is wrong, and what to do about it.
    pub fn new(args: &SidecarArgs) -> Result<Self, String> {
        let name = match &args.name {
            Some(name) => name.clone(),
            None => default_name(&args.services)?,
        };
        check_name("--name", &name)?;
        let roots = read("--ca-file", &args.ca_file)?;
        if !roots.contains("-----BEGIN CERTIFICATE-----") {
            return Err(format!(
                "--ca-file {}: has no certificate; `leno ca bundle` prints the mesh's roots",
                args.ca_file.display()
            ));
        }
        let token = read("--token-file", &args.token_file)?.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "--token-file {}: must hold one token in one line, as `leno token create` prints it",
                args.token_file.display()
            ));
        }
        let address = match args.address {
            Some(address) => address,
            None => own_address(&args.control_plane)?,
        };
        let sidecar = Self {
            told: told(args, &name, address),
            name,
            roots,
            token,
            admin: args.admin,
            ca_file: args.ca_file.clone(),
            token_file: args.token_file.clone(),
        };
        sidecar.check()?;
        Ok(sidecar)
    }

    /// The words behind `leno` with which it runs in the foreground.
    pub fn arguments(&self) -> Vec<String> {
        let mut words = vec!["proxy".to_owned()];
        let told = self.told.iter().map(|(flag, _, value)| format!("{flag}={value}"));
        words.extend(told);
        words.push(format!("--ca-file={}", self.ca_file.display()));
        words.push(format!("--token-file={}", self.token_file.display()));
        words
    }

    /// The file of its environment, when it finds the roots in `roots`.
    pub fn environment(&self, roots: &str) -> String {
        let mut text = String::from(
            "# Written by `leno join`, which writes it anew when it is called again.\n",
        );
        for (_, variable, value) in &self.told {
            text.push_str(&format!("{variable}={value}\n"));
        }
        text.push_str(&format!("LENO_CA_FILE={roots}\n"));
        text
    }

    fn check(&self) -> Result<(), String> {
        for (flag, _, value) in &self.told {
            // systemd reads quotes, backslashes and line breaks in its own way.
            if value.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\#$%".contains(c))
            {
                return Err(format!("{flag}: {value:?} has a character that cannot be there"));
            }
        }
        match Proxy::try_parse_from(self.arguments()) {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                Err(first.trim_start_matches("error: ").to_owned())
            }
        }
    }
}

fn told(
    args: &SidecarArgs,
    name: &str,
    address: IpAddr,
) -> Vec<(&'static str, &'static str, String)> {
    let optional = |value: &Option<String>| value.clone().unwrap_or_default();
    let all = [
        ("--control-plane", "LENO_CONTROL_PLANE", args.control_plane.clone()),
        ("--name", "LENO_NAME", name.to_owned()),
        ("--namespace", "LENO_NAMESPACE", args.namespace.clone()),
        ("--service", "LENO_SERVICES", args.services.join(",")),
        ("--app", "LENO_APP", args.ports.join(",")),
        ("--label", "LENO_LABELS", args.labels.join(",")),
        ("--service-account", "LENO_SERVICE_ACCOUNT", optional(&args.service_account)),
        ("--zone", "LENO_ZONE", optional(&args.zone)),
        ("--address", "LENO_ADDRESS", address.to_string()),
        ("--app-address", "LENO_APP_ADDRESS", args.app_address.to_string()),
        ("--outbound", "LENO_OUTBOUND", args.outbound.to_string()),
        ("--inbound", "LENO_INBOUND", args.inbound.to_string()),
        ("--admin", "LENO_ADMIN", args.admin.to_string()),
        ("--drain-delay", "LENO_DRAIN_DELAY", DRAIN_DELAY.to_string()),
    ];
    all.into_iter().filter(|(.., value)| !value.is_empty()).collect()
}

/// Names of units and files are made of it, and it is a workload's.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(flag: &str, name: &str) -> Result<(), String> {
    let ordinary = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if (1..=MAX_NAME).contains(&name.len()) && edges && name.chars().all(ordinary) {
        return Ok(());
    }
    Err(format!(
        "{flag}: `{name}` must be 1 to {MAX_NAME} of a-z, 0-9 and -, and not begin or end with -"
    ))
}

fn default_name(services: &[String]) -> Result<String, String> {
    let machine = fs::read_to_string(HOST_NAME)
        .map_err(|error| format!("{HOST_NAME}: {error}; give --name NAME"))?;
    let machine = machine.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let service = services.first().map(|service| service.split('.').next().unwrap_or_default());
    Ok(format!("{}-{machine}", service.unwrap_or_default()))
}

fn read(flag: &str, path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{flag} {}: {error}", path.display());
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{flag} {}: has {length} bytes; this is another file", path.display()));
    }
    fs::read_to_string(path).map_err(failed)
}

/// The address from which this machine reaches the control plane. Nothing is sent.
fn own_address(control_plane: &str) -> Result<IpAddr, String> {
    let failed = |error: std::io::Error| {
        format!(
            "--control-plane {control_plane}: {error}; with --address IP it need not be reached now"
        )
    };
    let there = control_plane.to_socket_addrs().map_err(failed)?.next();
    let there = there.ok_or_else(|| format!("--control-plane {control_plane}: has no address"))?;
    let any: SocketAddr = match there {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(failed)?;
    socket.connect(there).map_err(failed)?;
    Ok(socket.local_addr().map_err(failed)?.ip())
}
