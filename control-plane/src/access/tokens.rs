//! The token file: `{"tokens": [{"name": "ci", "role": "admin", "sha256": "…"}]}`.

use std::{
    fs,
    hint::black_box,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Caller, Role};

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

type Stamp = (SystemTime, u64);

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

    /// Whose token this is. Reads the file again if it changed.
    pub(super) fn find(&self, token: &[u8]) -> Result<Option<Caller>, TokenError> {
        let presented = digest(token);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read)?;
        let mut found = None;
        // Every token is compared, the found one too: the time says nothing about either.
        for token in &read.tokens {
            if equal(token.sha256.as_bytes(), presented.as_bytes()) {
                found = Some(token);
            }
        }
        Ok(found.map(|token| Caller {
            name: token.name.clone(),
            role: token.role,
            namespace: token.namespace.clone(),
        }))
    }

    /// Makes a token and keeps its digest; the answer is the only copy of the token itself.
    pub fn issue(
        &self,
        name: &str,
        role: Role,
        namespace: Option<&str>,
    ) -> Result<String, TokenError> {
        if role == Role::Workload && namespace.is_none() {
            return Err(TokenError::NoNamespace(name.to_owned()));
        }
        let secret =
            format!("{PREFIX}{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read)?;
        if read.tokens.len() >= MAX_TOKENS {
            return Err(TokenError::Full(self.path.clone()));
        }
        let mut tokens = read.tokens.clone();
        tokens.push(Token {
            name: name.to_owned(),
            role,
            namespace: namespace.map(ToOwned::to_owned),
            sha256: digest(secret.as_bytes()),
        });
        self.write(&Contents { tokens }).map_err(|error| TokenError::Write {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        Ok(secret)
    }

    /// Name, role and namespace of every token; the tokens themselves are known to nobody.
    pub fn list(&self) -> Result<Vec<(String, Role, Option<String>)>, TokenError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read)?;
        let tokens = read.tokens.iter();
        Ok(tokens.map(|token| (token.name.clone(), token.role, token.namespace.clone())).collect())
    }

    /// Makes every token of this name worthless; says how many there were.
    pub fn revoke(&self, name: &str) -> Result<usize, TokenError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut read)?;
        let tokens: Vec<Token> =
            read.tokens.iter().filter(|token| token.name != name).cloned().collect();
        let revoked = read.tokens.len() - tokens.len();
        if revoked > 0 {
            self.write(&Contents { tokens }).map_err(|error| TokenError::Write {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
        }
        Ok(revoked)
    }

    fn refresh(&self, read: &mut Read) -> Result<(), TokenError> {
        let failed = |reason: String| TokenError::Read { path: self.path.clone(), reason };
        let stamp = match fs::metadata(&self.path) {
            Ok(metadata) => metadata.modified().ok().map(|time| (time, metadata.len())),
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
        fs::rename(&beside, &self.path)
    }
}

fn digest(token: &[u8]) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares in a time that depends on the lengths only.
fn equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    one.len() == other.len() && differences == 0
}
