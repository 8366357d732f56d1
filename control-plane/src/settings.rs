//! What can be set, by flags or by the environment; the only reader of either.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::builder::FalseyValueParser;
use leno_api::model::{duration, identity::TrustDomain};
use leno_daemon::logs::Format;

use crate::{
    ca::{MAX_TTL, MIN_TTL},
    inject::{self, names::SYSTEM_NAMESPACE},
};

/// Runs the control plane
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Where resources, tokens and the certificate authority are kept
    #[arg(long, env = "LENO_DATA_DIR", default_value = "leno-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where the API for people and tools listens; port 0 takes any free one
    #[arg(long, env = "LENO_API", default_value = "127.0.0.1:15010", value_name = "ADDR")]
    pub api: SocketAddr,
    /// Where proxies connect
    #[arg(long, env = "LENO_XDS", default_value = "127.0.0.1:15012", value_name = "ADDR")]
    pub xds: SocketAddr,
    /// Where /metrics and /ready listen
    #[arg(long, env = "LENO_METRICS", default_value = "127.0.0.1:15014", value_name = "ADDR")]
    pub metrics: SocketAddr,
    /// Keep resources in memory only: they are gone when this ends; tokens and the certificate authority stay
    #[arg(long, env = "LENO_MEMORY", value_parser = FalseyValueParser::new())]
    pub memory: bool,
    /// Ask everybody for a token, callers on this machine too
    #[arg(long, env = "LENO_REQUIRE_TOKEN", value_parser = FalseyValueParser::new())]
    pub require_token: bool,
    /// A name, beside IP addresses and localhost, under which the API or the port for proxies is called
    #[arg(long = "api-host", env = "LENO_API_HOSTS", value_delimiter = ',', value_name = "NAME")]
    pub api_hosts: Vec<String>,
    /// The domain of all identities: spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(long, env = "LENO_TRUST_DOMAIN", default_value = "cluster.local", value_parser = TrustDomain::parse, value_name = "DOMAIN")]
    pub trust_domain: TrustDomain,
    /// How long a certificate is good for, 10s to 720h; proxies renew theirs in time
    #[arg(long, env = "LENO_CERTIFICATE_TTL", default_value = "24h", value_parser = certificate_ttl, value_name = "TIME")]
    pub certificate_ttl: Duration,
    /// A root of your own, as PEM, in place of the one made at the first start
    #[arg(long, env = "LENO_CA_ROOT", requires_all = ["ca_certificate", "ca_key"], value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// The certificate to issue with, issued by that root: PEM, with intermediates where there are any
    #[arg(long, env = "LENO_CA_CERTIFICATE", requires = "ca_root", value_name = "FILE")]
    pub ca_certificate: Option<PathBuf>,
    /// The key of that certificate; only you may be able to read it
    #[arg(long, env = "LENO_CA_KEY", requires = "ca_root", value_name = "FILE")]
    pub ca_key: Option<PathBuf>,
    /// Keys (JWKS) of an issuer of tokens that prove a workload's identity, such as Kubernetes
    #[arg(long, env = "LENO_JOIN_JWKS", requires_all = ["join_issuer", "join_audience"], value_name = "FILE|URL")]
    pub join_jwks: Option<String>,
    /// The `iss` of those tokens
    #[arg(long, env = "LENO_JOIN_ISSUER", requires = "join_jwks", value_name = "TEXT")]
    pub join_issuer: Option<String>,
    /// The `aud` of those tokens
    #[arg(long, env = "LENO_JOIN_AUDIENCE", requires = "join_jwks", value_name = "TEXT")]
    pub join_audience: Option<String>,
    /// Take everything from Kubernetes: its API server is the only one that people write to, and statuses go there
    #[arg(long, env = "LENO_KUBERNETES", value_parser = FalseyValueParser::new())]
    pub kubernetes: bool,
    /// A kubeconfig that says where Kubernetes is; in a pod its service account is enough
    #[arg(long, env = "LENO_KUBERNETES_CONFIG", requires = "kubernetes", value_name = "FILE")]
    pub kubernetes_config: Option<PathBuf>,
    /// Only these namespaces of Kubernetes; all where left out
    #[arg(
        long,
        env = "LENO_KUBERNETES_NAMESPACES",
        requires = "kubernetes",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub kubernetes_namespaces: Vec<String>,
    /// Where the control plane itself runs: the Lease by which one of several replicas leads is there
    #[arg(long, env = "LENO_KUBERNETES_NAMESPACE", default_value = SYSTEM_NAMESPACE, value_name = "NAME")]
    pub kubernetes_namespace: String,
    /// Where the Kubernetes API server asks about pods and resources; nowhere when left out
    #[arg(long, env = "LENO_WEBHOOK", value_name = "ADDR")]
    pub webhook: Option<SocketAddr>,
    /// Roots, as PEM, of the certificates that callers of the webhook must show; nobody must when left out
    #[arg(long, env = "LENO_WEBHOOK_CLIENT_CA", requires = "webhook", value_name = "FILE")]
    pub webhook_client_ca: Option<PathBuf>,
    #[command(flatten)]
    pub inject: inject::Settings,
    /// What to log: `info`, or `info,leno_control_plane=debug`
    #[arg(long, env = "LENO_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How to log
    #[arg(long, env = "LENO_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

/// Long enough that a control plane may be away for a working day.
const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl Settings {
    /// On free loopback ports with nothing kept: for tests and the demonstration.
    pub fn ephemeral(data_dir: PathBuf) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir,
            api: any,
            xds: any,
            metrics: any,
            memory: true,
            require_token: false,
            api_hosts: Vec::new(),
            trust_domain: TrustDomain::default(),
            certificate_ttl: CERTIFICATE_TTL,
            ca_root: None,
            ca_certificate: None,
            ca_key: None,
            join_jwks: None,
            join_issuer: None,
            join_audience: None,
            kubernetes: false,
            kubernetes_config: None,
            kubernetes_namespaces: Vec::new(),
            kubernetes_namespace: SYSTEM_NAMESPACE.to_owned(),
            webhook: None,
            webhook_client_ca: None,
            inject: inject::Settings::default(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

fn certificate_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    if (MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Ok(ttl);
    }
    Err(format!("must be {} s to {} h", MIN_TTL.as_secs(), MAX_TTL.as_secs() / 3600))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn the_defaults_are_the_documented_ports_on_loopback() {
        Command::command().debug_assert();
        let settings = Command::parse_from(["x"]).settings;
        assert_eq!(settings.api.to_string(), "127.0.0.1:15010");
        assert_eq!(settings.xds.to_string(), "127.0.0.1:15012");
        assert_eq!(settings.metrics.to_string(), "127.0.0.1:15014");
        assert!(!settings.memory && !settings.require_token);
        assert!(Command::try_parse_from(["x", "--api", "localhost"]).is_err());
    }

    #[test]
    fn what_concerns_certificates_is_checked_as_far_as_can_be() {
        let parse = |arguments: &[&str]| {
            Command::try_parse_from([&["x"], arguments].concat()).map(|command| command.settings)
        };
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.trust_domain.as_str(), "cluster.local");
        assert_eq!(settings.certificate_ttl, CERTIFICATE_TTL);
        assert_eq!(
            parse(&["--certificate-ttl", "10s"]).unwrap().certificate_ttl,
            Duration::from_secs(10)
        );
        for wrong in [
            &["--certificate-ttl", "9s"][..],
            &["--certificate-ttl", "721h"],
            &["--certificate-ttl", "soon"],
            &["--trust-domain", "Shop"],
            &["--ca-root", "root.pem"],
            &["--ca-root", "root.pem", "--ca-key", "key.pem"],
            &["--ca-key", "key.pem"],
            &["--join-jwks", "keys.json"],
            &["--join-audience", "leno"],
            &["--webhook-client-ca", "ca.pem"],
            &["--webhook", "15017"],
            &["--sidecar-drain", "2h"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
