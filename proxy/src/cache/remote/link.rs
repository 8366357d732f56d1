//! A connection to Redis: made, watched, given up.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use leno_api::model::cache_policy::Redis;
use redis::{
    AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection,
};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, sync::Notify, task::AbortHandle, time::timeout};
use tokio_rustls::TlsConnector;

use crate::http::fetch;

/// After so many failures in a row it is given up.
pub const MOST_FAILURES: u32 = 3;
/// For name, connection, handshake and password. No request waits for it.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Questions that wait for the connection; others wait for a place, within their own time.
const MOST_QUESTIONS: usize = 64;
/// Longest password, in bytes: of a file of any size not more is read.
const MOST_PASSWORD: u64 = 4096;
/// What Redis refuses because it is full, or may not write: reading goes on.
const ABOUT_WRITING: [&str; 4] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS"];

/// Why Redis was of no use.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// It says no, or the connection is gone.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// What came is nothing that was asked for.
    #[error("an answer that makes no sense")]
    Answer,
    /// No connection.
    #[error("connecting: {0}")]
    Connect(#[from] io::Error),
    /// No trusted roots, or no TLS.
    #[error(transparent)]
    Tls(#[from] fetch::FetchError),
    /// The password cannot be read.
    #[error("passwordFile {0}: {1}")]
    Password(String, io::Error),
    /// Not a name for TLS.
    #[error("the host is neither a DNS name nor an address")]
    Host,
}

impl Failure {
    /// Whether the connection cannot be used any more.
    fn is_end(&self) -> bool {
        match self {
            Self::Redis(error) => error.code().is_none(),
            _ => false,
        }
    }

    /// Whether it says nothing of the connection.
    fn is_about_writing(&self) -> bool {
        let Self::Redis(error) = self else { return false };
        error.code().is_some_and(|code| ABOUT_WRITING.contains(&code))
    }
}

/// One connection.
pub struct Link {
    connection: MultiplexedConnection,
    driver: AbortHandle,
    failures: AtomicU32,
    useful: AtomicBool,
    given_up: Notify,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("failures", &self.failures).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It would otherwise wait for the answers to all that was asked.
        self.driver.abort();
    }
}

impl Link {
    /// Connects, and asks for a sign of life as any request would.
    ///
    /// # Errors
    /// When nothing comes of it.
    pub async fn open(redis: &Redis) -> Result<Self, Failure> {
        let connecting = timeout(CONNECT_TIME, connect(redis)).await;
        let link = connecting.map_err(|_| Failure::Slow(CONNECT_TIME))??;
        let ping = redis::cmd("PING");
        let answer = timeout(redis.timeout, link.call(&ping)).await;
        match answer.map_err(|_| Failure::Slow(redis.timeout))?? {
            Value::SimpleString(pong) if pong == "PONG" => Ok(link),
            _ => Err(Failure::Answer),
        }
    }

    /// Waits for `asking` as long as may be, and draws conclusions for the connection.
    ///
    /// # Errors
    /// When nothing comes in time, or nothing good.
    pub async fn within<T>(
        &self,
        time: Duration,
        asking: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let result = timeout(time, asking).await.unwrap_or(Err(Failure::Slow(time)));
        match &result {
            Ok(_) => {
                self.failures.store(0, Ordering::Relaxed);
                self.useful.store(true, Ordering::Relaxed);
            }
            Err(failure) if failure.is_about_writing() => {}
            Err(failure) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if failures >= MOST_FAILURES || failure.is_end() {
                    self.given_up.notify_one();
                }
            }
        }
        result
    }

    /// Asks one thing, for as long as it takes.
    ///
    /// # Errors
    /// When Redis says no, or the connection is gone.
    pub async fn call(&self, command: &Cmd) -> Result<Value, Failure> {
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    /// Until nobody should use it any more.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }

    /// Whether it ever answered a question.
    pub fn was_useful(&self) -> bool {
        self.useful.load(Ordering::Relaxed)
    }
}

async fn connect(redis: &Redis) -> Result<Link, Failure> {
    let (host, port) = redis.address.rsplit_once(':').ok_or(Failure::Host)?;
    let port = port.parse().map_err(|_| Failure::Host)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let info = credentials(redis).await?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(MOST_QUESTIONS);
    if !redis.tls {
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        return Ok(link(made));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Failure::Host)?;
    let tls: Arc<_> = fetch::native_client_config().await?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    Ok(link(MultiplexedConnection::new_with_config(&info, stream, config).await?))
}

fn link(
    (connection, driver): (MultiplexedConnection, impl Future<Output = ()> + Send + 'static),
) -> Link {
    Link {
        connection,
        driver: tokio::spawn(driver).abort_handle(),
        failures: AtomicU32::new(0),
        useful: AtomicBool::new(false),
        given_up: Notify::new(),
    }
}

/// Read each time: a password that was changed counts with the next connection.
async fn credentials(redis: &Redis) -> Result<RedisConnectionInfo, Failure> {
    let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
    let Some(path) = redis.password_file.clone() else { return Ok(info) };
    let shown = path.display().to_string();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        io::Read::read_to_string(&mut io::Read::take(file, MOST_PASSWORD), &mut text)?;
        Ok(text)
    });
    let read = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let text = read.map_err(|error| Failure::Password(shown, error))?;
    info = info.set_password(text.trim_end_matches(['\n', '\r']));
    Ok(match &redis.username {
        Some(username) => info.set_username(username),
        None => info,
    })
}
