//! The token file: `{"tokens": [{"name": "ci", "role": "admin", "sha256": "…"}]}`.
//!
//! Several processes write it (the command line makes tokens, the control plane uses up those of one use): each
//! change is made under a lock on `tokens.json.lock`, so that none undoes another's.

use std::{
    fs,
    hint::black_box,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use leno_api::model::ObjectName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Role;

const FILE: &str = "tokens.json";
/// Starts every token, so that scanners for leaked secrets can tell one.
const PREFIX: &str = "leno_";
/// Each request compares with every token, in constant time.
const MAX_TOKENS: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read {}: {reason}. Correct the file, or remove it and issue new tokens", .path.display())]
    Read { path: PathBuf, reason: String },
    #[error("cannot write {}: {reason}", .path.display())]
    Write { path: PathBuf, reason: String },
    #[error("{} has {MAX_TOKENS} tokens, the most that are possible: remove those no longer used", .0.display())]
    Full(PathBuf),
    #[error("the workload token {0:?} needs a namespace")]
    NoNamespace(String),
    #[error("only a workload token has a service account, {0:?} is of another role")]
    NotAWorkload(String),
    #[error(
        "the token {0:?} would be for one use, which only the certificate authority counts: give it the role workload"
    )]
    OnceForPeople(String),
    #[error(
        "the namespace or the service account of the token {0:?} cannot be part of an identity: lower-case letters, digits, `-` and `.`, at most 253"
    )]
    BadName(String),
}

/// What a new token is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewToken<'a> {
    pub name: &'a str,
    pub role: Role,
    pub namespace: Option<&'a str>,
    /// Of a workload: the identity that the token proves; without it the account `default`.
    pub service_account: Option<&'a str>,
    /// Unix seconds; from then on the token is not known.
    pub expires: Option<u64>,
    /// Good for one certificate, and for nothing else.
    pub once: bool,
}

/// What may be told about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    pub name: String,
    pub role: Role,
    pub namespace: Option<String>,
    pub service_account: Option<String>,
    /// Unix seconds.
    pub expires: Option<u64>,
    pub once: bool,
    /// A token of one use that has had it.
    pub used: bool,
}

/// The tokens in a data directory.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    read: Mutex<Read>,
}

/// What was read, and of which state of the file.
#[derive(Debug, Default)]
struct Read {
    stamp: Option<Stamp>,
    tokens: Vec<Token>,
}

/// When it was written, its length, and which file it is: it is replaced, and two may be written within the clock's grain.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Contents {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(default, skip_serializing_if = "is_false")]
    once: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    used: bool,
    sha256: String,
}

impl TokenFile {
    /// The token file in `directory`; it need not exist yet.
    pub fn open(directory: &Path) -> Result<Self, TokenError> {
        let file = Self { path: directory.join(FILE), read: Mutex::default() };
        file.find(b"")?;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose token this is, and whether it still is good for anything: an expired one, and one of a single use that
    /// has had it, are found as well, so that its bearer can be told. Reads the file again if it changed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn find(&self, token: &[u8]) -> Result<Option<TokenInfo>, TokenError> {
        let presented = digest(token);
        let mut read = self.locked();
        self.refresh(&mut read)?;
        Ok(position(&read.tokens, &presented).map(|at| read.tokens[at].info()))
    }

    /// Uses up a token of one use; says whether it was still unused. That is on the disk when this returns, so that
    /// what the token was for can be handed out. Of other tokens it says whether they are good.
    ///
    /// # Errors
    /// When the file cannot be read or written; nothing may be handed out then.
    pub fn consume(&self, token: &[u8]) -> Result<bool, TokenError> {
        let presented = digest(token);
        self.change(|tokens| {
            let found = position(tokens, &presented).map(|at| &mut tokens[at]);
            let Some(token) = found.filter(|token| token.info().is_good(now())) else {
                return Ok((false, false));
            };
            token.used = token.once;
            Ok((true, token.once))
        })
    }

    /// Makes a token and keeps its digest; the answer is the only copy of the token itself.
    ///
    /// # Errors
    /// When the token makes no sense, or the file cannot be read or written.
    pub fn issue(&self, new: NewToken<'_>) -> Result<String, TokenError> {
        new.check()?;
        let secret =
            format!("{PREFIX}{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        self.change(|tokens| {
            make_room(tokens);
            if tokens.len() >= MAX_TOKENS {
                return Err(TokenError::Full(self.path.clone()));
            }
            tokens.push(Token::new(&new, digest(secret.as_bytes())));
            Ok(((), true))
        })?;
        Ok(secret)
    }

    /// Every token; the tokens themselves are known to nobody.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self) -> Result<Vec<TokenInfo>, TokenError> {
        let mut read = self.locked();
        self.refresh(&mut read)?;
        Ok(read.tokens.iter().map(Token::info).collect())
    }

    /// Makes every token of this name worthless; says how many there were.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn revoke(&self, name: &str) -> Result<usize, TokenError> {
        self.change(|tokens| {
            let before = tokens.len();
            tokens.retain(|token| token.name != name);
            let revoked = before - tokens.len();
            Ok((revoked, revoked > 0))
        })
    }

    /// Lets one change happen at a time, of all processes. The change says what it found and whether to write.
    ///
    /// Whoever only asks whose a token is waits for none of it: another process may hold the lock for long, and disks
    /// are slow.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Token>) -> Result<(T, bool), TokenError>,
    ) -> Result<T, TokenError> {
        let failed = |error: io::Error| TokenError::Write {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        let _lock = self.lock_file().map_err(failed)?;
        // From the disk: what was read last could miss a change within the clock's grain.
        let mut current = Read::default();
        self.refresh(&mut current)?;
        let mut tokens = current.tokens;
        let (found, write) = change(&mut tokens)?;
        if write {
            self.write(&Contents { tokens }).map_err(failed)?;
            let mut written = Read::default();
            self.refresh(&mut written)?;
            *self.locked() = written;
        }
        Ok(found)
    }

    /// The lock is on a file of its own, since the token file is replaced by each change. Dropping it unlocks.
    fn lock_file(&self) -> io::Result<fs::File> {
        let path = self.path.with_extension("json.lock");
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }

    fn locked(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh(&self, read: &mut Read) -> Result<(), TokenError> {
        let failed = |reason: String| TokenError::Read { path: self.path.clone(), reason };
        let stamp = match fs::metadata(&self.path) {
            Ok(metadata) => {
                metadata.modified().ok().map(|time| (time, metadata.len(), metadata.ino()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *read = Read::default();
                return Ok(());
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        if stamp.is_some() && stamp == read.stamp {
            return Ok(());
        }
        // Until it reads well again, nobody's token is known: a revocation must not be missed.
        *read = Read::default();
        let text = fs::read(&self.path).map_err(|error| failed(error.to_string()))?;
        let contents: Contents =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        if contents.tokens.len() > MAX_TOKENS {
            return Err(TokenError::Full(self.path.clone()));
        }
        *read = Read { stamp, tokens: contents.tokens };
        Ok(())
    }

    /// Writes beside and renames, so that a reader sees the old file or the new one.
    fn write(&self, contents: &Contents) -> io::Result<()> {
        let beside = self.path.with_extension("json.new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        // Or a used token could be unused again after a power failure.
        match self.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl NewToken<'_> {
    fn check(&self) -> Result<(), TokenError> {
        let name = || self.name.to_owned();
        let workload = self.role == Role::Workload;
        if workload && self.namespace.is_none() {
            return Err(TokenError::NoNamespace(name()));
        }
        if !workload && self.service_account.is_some() {
            return Err(TokenError::NotAWorkload(name()));
        }
        if !workload && self.once {
            return Err(TokenError::OnceForPeople(name()));
        }
        let (namespace, account) = (self.namespace.unwrap_or("x"), self.service_account);
        if ObjectName::parse(&format!("{namespace}/{}", account.unwrap_or("x"))).is_none() {
            return Err(TokenError::BadName(name()));
        }
        Ok(())
    }
}

impl Token {
    fn new(new: &NewToken<'_>, sha256: String) -> Self {
        Self {
            name: new.name.to_owned(),
            role: new.role,
            namespace: new.namespace.map(ToOwned::to_owned),
            service_account: new.service_account.map(ToOwned::to_owned),
            expires: new.expires,
            once: new.once,
            used: false,
            sha256,
        }
    }

    fn info(&self) -> TokenInfo {
        TokenInfo {
            name: self.name.clone(),
            role: self.role,
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            expires: self.expires,
            once: self.once,
            used: self.used,
        }
    }
}

impl TokenInfo {
    /// At `now`, in Unix seconds.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Neither expired nor used up.
    pub fn is_good(&self, now: u64) -> bool {
        !self.used && !self.is_expired(now)
    }
}

/// Forgets expired tokens, and where that is not enough those that are used up.
fn make_room(tokens: &mut Vec<Token>) {
    let now = now();
    tokens.retain(|token| !token.info().is_expired(now));
    if tokens.len() >= MAX_TOKENS {
        tokens.retain(|token| !token.used);
    }
}

/// Every token is compared, also after one was found: the time says nothing about any.
fn position(tokens: &[Token], presented: &str) -> Option<usize> {
    let mut found = None;
    for (at, token) in tokens.iter().enumerate() {
        if equal(token.sha256.as_bytes(), presented.as_bytes()) {
            found = Some(at);
        }
    }
    found
}

pub(super) fn now() -> u64 {
    // A clock before 1970 makes nothing expire that people would still use.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn digest(token: &[u8]) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares in a time that depends on the lengths only.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    one.len() == other.len() && differences == 0
}
