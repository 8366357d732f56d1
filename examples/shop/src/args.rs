//! The command line. Every flag can also be set as `LENO_SHOP_...` in the environment.

use crate::Label;
use http::uri::Authority;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Which of the four services an instance is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    User,
    Product,
    Order,
    Notification,
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::User => "user",
            Self::Product => "product",
            Self::Order => "order",
            Self::Notification => "notification",
        })
    }
}

/// How to start one instance of one service.
#[derive(Clone, Debug, clap::Args)]
// `--version` is the version this instance claims to be, not the program's.
#[command(disable_version_flag = true)]
pub struct Args {
    /// Which service to be
    #[arg(value_enum, env = "LENO_SHOP_SERVICE")]
    pub service: Service,

    /// Where to serve; port 0 takes any free one
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_LISTEN", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,

    /// Where to be told to be slow, failing or newer; port 0 takes any free one
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_CONTROL", default_value = "127.0.0.1:0")]
    pub control: SocketAddr,

    /// The version to report
    #[arg(long, value_name = "NAME", env = "LENO_SHOP_VERSION", default_value = "v1")]
    pub version: Label,

    /// The name of this instance [default: the service's name and "-1"]
    #[arg(long, value_name = "NAME", env = "LENO_SHOP_INSTANCE")]
    pub instance: Option<Label>,

    /// The outbound port of this instance's own sidecar, by which it reaches the other services
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_MESH")]
    pub mesh: Option<Address>,

    /// Start without --mesh: it is told later, on the control port
    #[arg(long, env = "LENO_SHOP_AWAIT_MESH")]
    pub await_mesh: bool,

    /// Reach user here, past the mesh
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_USER_ADDR")]
    pub user_addr: Option<Address>,

    /// Reach product here, past the mesh
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_PRODUCT_ADDR")]
    pub product_addr: Option<Address>,

    /// Reach notification here, past the mesh
    #[arg(long, value_name = "ADDR", env = "LENO_SHOP_NOTIFICATION_ADDR")]
    pub notification_addr: Option<Address>,

    /// What the mesh calls user
    #[arg(long, value_name = "HOST", env = "LENO_SHOP_USER_NAME", default_value = "user")]
    pub user_name: Authority,

    /// What the mesh calls product
    #[arg(long, value_name = "HOST", env = "LENO_SHOP_PRODUCT_NAME", default_value = "product")]
    pub product_name: Authority,

    /// What the mesh calls the catalogue of product
    #[arg(
        long,
        value_name = "HOST",
        env = "LENO_SHOP_CATALOGUE_NAME",
        default_value = "catalogue"
    )]
    pub catalogue_name: Authority,

    /// What the mesh calls notification, with its port
    #[arg(long, value_name = "HOST:PORT", env = "LENO_SHOP_NOTIFICATION_NAME")]
    #[arg(default_value = "notification:7000")]
    pub notification_name: Address,

    /// How long order waits for each call to another service
    #[arg(long, value_name = "MS", env = "LENO_SHOP_CALL_TIMEOUT_MS", default_value_t = 5_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub call_timeout_ms: u64,
}

/// `HOST:PORT`, the port being a must.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Authority);

impl Address {
    pub fn authority(&self) -> &Authority {
        &self.0
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority: Authority =
            text.parse().map_err(|_| format!("{text:?} is not HOST:PORT"))?;
        match authority.port_u16() {
            Some(port) if port > 0 && !authority.as_str().contains('@') => Ok(Self(authority)),
            _ => Err(format!("{text:?} is not HOST:PORT with a port from 1 to 65535")),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
