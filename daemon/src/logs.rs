//! Logs on standard error. Standard output belongs to the JSON line with the bound addresses and to the access log.

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes levels at run time.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directive cannot be read.
    #[error(
        "`{directive}` is not a log filter ({reason}); write `info` or `info,leno_proxy=debug`"
    )]
    Filter {
        /// As given.
        directive: String,
        /// The parser's words.
        reason: String,
    },
    /// Somebody else set up logging in this process before.
    #[error("logging is already set up in this process")]
    Twice,
}

/// Sets up logging for the whole process. ANSI colours are never written: values come from the network.
///
/// # Errors
/// When `directive` is not a filter, or logging was set up before.
pub fn init(directive: &str, format: Format) -> Result<Logs, Error> {
    let (filter, handle) = reload::Layer::new(parse(directive)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| Error::Twice)?;
    Ok(Logs { filter: handle })
}

impl Logs {
    /// Replaces the filter.
    ///
    /// # Errors
    /// When `directive` is not a filter; the old one stays.
    pub fn set(&self, directive: &str) -> Result<(), Error> {
        let filter = parse(directive)?;
        self.filter.reload(filter).map_err(|_| Error::Twice)
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Whether `directive` is a filter, for whoever hands it on to another process.
///
/// # Errors
/// When it is not.
pub fn check(directive: &str) -> Result<(), Error> {
    parse(directive).map(drop)
}

fn parse(directive: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(directive).map_err(|error| Error::Filter {
        directive: directive.to_owned(),
        reason: error.to_string(),
    })
}
