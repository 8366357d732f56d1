//! Native code on disk, so that a restart does not compile again.
//!
//! A file `<digest>.cwasm` is: magic, what the code was compiled for, the module's digest, the code's
//! digest, the code. Loading runs what is in it, so besides the checks of its content the file and its
//! directory must not be writable by others than their owner.

use std::{
    fs,
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Digest, LoadError, Module};
use crate::engine::Engine;

const MAGIC: &[u8; 8] = b"LENOWSM1";
const HEADER: usize = 8 + 8 + 32 + 32;

/// Why code was not loaded from, or not written to, the cache. None of it is fatal: compile the module.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Reading or writing failed.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What failed.
        error: io::Error,
    },
    /// Others than we and root may write there, who could run code in this process.
    #[error(
        "{path}: others may write here; take it over and the permission away (chown, chmod go-w)"
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
    },
    /// The file is damaged, or another module's.
    #[error("{path}: damaged; it will be written anew")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The native code cannot be made or used.
    #[error("{path}: {reason}")]
    Engine {
        /// The file.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// The module in the cache cannot be a plugin.
    #[error(transparent)]
    Module(#[from] LoadError),
}

impl Module {
    /// Loads what [`Module::save`] wrote for the module with this digest; `None` if there is nothing, or
    /// nothing that this engine, on this machine, can use. The code itself is checked too.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn load_cached(
        engine: &Engine,
        directory: &Path,
        digest: Digest,
    ) -> Result<Option<Self>, CacheError> {
        let path = file(directory, digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CacheError::Io { path, error }),
        };
        check_owner_only(directory)?;
        check_owner_only(&path)?;
        let (header, code) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| CacheError::Damaged { path: path.clone() })?;
        if header[..16] != compatibility(engine) {
            return Ok(None);
        }
        if header[16..48] != *digest.bytes() || header[48..] != *Digest::of(code).bytes() {
            return Err(CacheError::Damaged { path });
        }
        let module = deserialize(engine, code)
            .map_err(|error| CacheError::Engine { path, reason: format!("{error:#}") })?;
        Ok(Some(Self::inspect(engine, module, digest)?))
    }

    /// Writes the native code, so that it is there at once or not at all.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn save(&self, directory: &Path) -> Result<(), CacheError> {
        let path = file(directory, self.digest);
        let code = self.module.serialize().map_err(|error| CacheError::Engine {
            path: path.clone(),
            reason: format!("{error:#}"),
        })?;
        let header =
            [&compatibility(&self.engine)[..], self.digest.bytes(), Digest::of(&code).bytes()]
                .concat();
        write(directory, &path, &header, &code).map_err(|error| CacheError::Io { path, error })
    }
}

fn file(directory: &Path, digest: Digest) -> PathBuf {
    directory.join(format!("{digest}.cwasm"))
}

/// The code fits the engine, its settings and the processor exactly, or it is compiled again.
fn compatibility(engine: &Engine) -> [u8; 16] {
    let mut hasher = DefaultHasher::new();
    engine.wasmtime().precompile_compatibility_hash().hash(&mut hasher);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..].copy_from_slice(&hasher.finish().to_le_bytes());
    bytes
}

fn write(directory: &Path, path: &Path, header: &[u8], code: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    let written = create(directory, &unfinished)
        .and_then(|mut file| {
            file.write_all(header)?;
            file.write_all(code)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // What is left of it would only take space; the error that counts is the first one.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// A name that nobody else writes to: other threads, and other processes, of which some are process 1 of a container, may
/// save the same module at the same time.
fn unfinished(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = RandomState::new().hash_one((std::process::id(), NEXT.fetch_add(1, Relaxed)));
    path.with_extension(format!("{name:016x}.tmp"))
}

#[cfg(unix)]
fn create(directory: &Path, path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create(directory: &Path, path: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(directory)?;
    fs::File::create_new(path)
}

#[cfg(unix)]
fn check_owner_only(path: &Path) -> Result<(), CacheError> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let metadata =
        fs::metadata(path).map_err(|error| CacheError::Io { path: path.to_owned(), error })?;
    // An image may bring a cache that belongs to root, who can do anything to us anyway.
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if !ours || metadata.permissions().mode() & 0o022 != 0 {
        return Err(CacheError::Writable { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner_only(_path: &Path) -> Result<(), CacheError> {
    Ok(())
}

#[expect(unsafe_code, reason = "the only way to load native code, which is what the cache is for")]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<wasmtime::Module> {
    // SAFETY: the bytes are what `serialize` returned: `load_cached`, the only caller, has checked the
    // code against the digest that `save` wrote with it, and that nobody but the owner of the directory,
    // under whom we run, can have written either.
    unsafe { wasmtime::Module::deserialize(engine.wasmtime(), code) }
}
