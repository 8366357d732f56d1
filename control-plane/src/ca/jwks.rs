//! The keys of a JWT issuer: a file or a URL, read again when a token names a key that is not among them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::Uri;
use rustls::RootCertStore;
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};

use super::{
    JwtSettings, fetch, files,
    jwt::{Account, BadToken, Expected, Keys, MAX_KEYS_BYTES},
};

/// The least time between two reads: strangers can make up as many key names as they like.
const INTERVAL: Duration = Duration::from_secs(30);
/// Keys that an issuer withdrew are forgotten after this time.
pub const REFRESH: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum BadSource {
    #[error(
        "{0:?} is no place for the keys of an issuer: give a file, or a URL that begins with https:// (http:// is possible to a loopback address only)"
    )]
    NotAPlace(String),
    /// Without the URL, since the secret is in it.
    #[error(
        "the URL of an issuer's keys has a user or a password in it, which would be sent in the clear parts of a request: keys are public, give a URL without"
    )]
    Secret,
    #[error("the keys in {} cannot be used: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unproven {
    #[error(transparent)]
    Bad(#[from] BadToken),
    #[error("the keys of the issuer cannot be read now, try again later")]
    NoKeys,
}

/// An issuer of JWTs.
pub struct Issuer {
    source: Source,
    issuer: String,
    audience: String,
    keys: RwLock<Option<Arc<Keys>>>,
    /// When they were last read, or should have been; whoever holds it reads them.
    read: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    /// And whom to trust there, instead of whom the system trusts.
    Url(Uri, Option<Arc<RootCertStore>>),
}

impl Issuer {
    /// A file is read at once; a URL at the first token, since the issuer may start after us.
    ///
    /// # Errors
    /// [`BadSource`].
    pub fn new(settings: &JwtSettings) -> Result<Self, BadSource> {
        let source = Source::parse(&settings.jwks)?;
        let keys = match &source {
            Source::File(path) => {
                let damaged = |reason| BadSource::Damaged { path: path.clone(), reason };
                Some(Arc::new(read_file(path).map_err(damaged)?))
            }
            Source::Url(..) => None,
        };
        Ok(Self {
            source,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            keys: RwLock::new(keys),
            read: Mutex::new(None),
        })
    }

    /// Whose token it is, at `now` (Unix seconds).
    ///
    /// # Errors
    /// [`Unproven`].
    pub async fn check(&self, token: &[u8], now: i64) -> Result<Account, Unproven> {
        let expected = Expected { issuer: &self.issuer, audience: &self.audience, now };
        if let Some(keys) = self.keys() {
            match keys.check(token, expected) {
                Err(BadToken::UnknownKey(_)) => {}
                checked => return Ok(checked?),
            }
        } else if token.len() > super::jwt::MAX_BYTES {
            return Err(BadToken::TooLarge(token.len()).into());
        }
        self.read_again(INTERVAL).await;
        Ok(self.keys().ok_or(Unproven::NoKeys)?.check(token, expected)?)
    }

    /// Reads the keys again unless that was done within `interval`. Where it fails, the old ones stay.
    pub async fn read_again(&self, interval: Duration) {
        let mut read = self.read.lock().await;
        if read.is_some_and(|read| read.elapsed() < interval) {
            return;
        }
        *read = Some(Instant::now());
        match self.source.read().await {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
            }
            Err(reason) => {
                tracing::error!(source = %self.source, reason, "the keys of the JWT issuer cannot be read; those read before stay");
            }
        }
    }

    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source {
    fn parse(text: &str) -> Result<Self, BadSource> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let bad = || BadSource::NotAPlace(text.to_owned());
        let authority =
            text.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next());
        if authority.is_some_and(|authority| authority.contains('@')) {
            return Err(BadSource::Secret);
        }
        let url: Uri = text.parse().map_err(|_| bad())?;
        let host = url.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let loopback = host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|host: IpAddr| host.is_loopback());
        match url.scheme_str() {
            Some("https") => Ok(Self::Url(url, None)),
            Some("http") if loopback => Ok(Self::Url(url, None)),
            _ => Err(bad()),
        }
    }

    async fn read(&self) -> Result<Keys, String> {
        match self.clone() {
            Self::File(path) => {
                let read = spawn_blocking(move || read_file(&path)).await;
                read.map_err(|error| error.to_string())?
            }
            Self::Url(url, roots) => {
                let roots = match roots {
                    Some(roots) => roots,
                    None if url.scheme_str() == Some("http") => Arc::new(RootCertStore::empty()),
                    None => spawn_blocking(fetch::native_roots)
                        .await
                        .map_err(|error| error.to_string())??,
                };
                Keys::read(&fetch::get(&url, &roots, MAX_KEYS_BYTES).await?)
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(out),
            // Without the query, which may hold a secret.
            Self::Url(url, _) => write!(out, "{}{}", url.host().unwrap_or_default(), url.path()),
        }
    }
}

fn read_file(path: &Path) -> Result<Keys, String> {
    Keys::read(&files::read(path).map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests;
