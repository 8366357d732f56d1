//! What can be set, by flags or by the environment; the only reader of either.

use std::{net::SocketAddr, path::PathBuf};

use clap::builder::FalseyValueParser;
use leno_daemon::logs::Format;

/// Runs the control plane
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Where resources and tokens are kept
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
    /// Keep resources in memory only: they are gone when this ends
    #[arg(long, env = "LENO_MEMORY", value_parser = FalseyValueParser::new())]
    pub memory: bool,
    /// Ask everybody for a token, callers on this machine too
    #[arg(long, env = "LENO_REQUIRE_TOKEN", value_parser = FalseyValueParser::new())]
    pub require_token: bool,
    /// A name, beside IP addresses and localhost, under which the API is called
    #[arg(long = "api-host", env = "LENO_API_HOSTS", value_delimiter = ',', value_name = "NAME")]
    pub api_hosts: Vec<String>,
    /// What to log: `info`, or `info,leno_control_plane=debug`
    #[arg(long, env = "LENO_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How to log
    #[arg(long, env = "LENO_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

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
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
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
}
