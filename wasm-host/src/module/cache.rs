//! Native code on disk, so that a restart does not compile again.
//!
//! A file `<digest>.cwasm` is: a header (magic, what the code was compiled for, the module's digest, the code's length
//! and CRC-32), the code. Loading runs what is in it. Two things guard that:
//!
//! - Against others: neither the file nor its directory may be writable by anybody but us and root. A digest would be
//!   no help there: whoever can change the code can change its digest, too.
//! - Against accidents (a disk that forgets, a copy that was cut off, a version that wrote something else): the
//!   header and the checksum. CRC-32 finds every change of up to two bits in 512 MiB and every damaged stretch of up to
//!   four bytes, and all but one of 4,000,000,000 of the others. SHA-256 would find them no better and takes a millisecond for
//!   2 MiB, which was half of what loading took.
//!
//! The code is not mapped from the file: whoever cuts the file off would end the process (SIGBUS), and pages read later may be
//! others than those that were checked. It is copied once into memory that cannot change any more and is mapped from
//! there, where the platform has that, else it is copied twice.

use std::{
    fs,
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use self::copy::Copied;
use super::{Digest, LoadError, Module};
use crate::engine::Engine;

mod copy;

const MAGIC: &[u8; 8] = b"LENOWSM2";
/// Magic, compatibility, the module's digest, the code's length and its checksum.
const HEADER: usize = 8 + 8 + 32 + 8 + 4;
/// Of native code: what a module of 64 MiB could become. Longer files are not ours.
const MAX_CODE_BYTES: u64 = 1 << 30;

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
        let io = |error| CacheError::Io { path: path.clone(), error };
        let mut file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        check_owner_only(directory, &fs::metadata(directory).map_err(io)?)?;
        let metadata = file.metadata().map_err(io)?;
        check_owner_only(&path, &metadata)?;
        let Some(header) = read_header(&mut file).map_err(io)? else {
            return Err(CacheError::Damaged { path });
        };
        if header[..16] != compatibility(engine) {
            return Ok(None);
        }
        let (length, checksum) = measures(&header);
        let whole = metadata.len().checked_sub(HEADER as u64) == Some(length);
        if header[16..48] != *digest.bytes() || !whole || length > MAX_CODE_BYTES {
            return Err(CacheError::Damaged { path });
        }
        let (code, found) = Copied::read(&mut file, length).map_err(io)?;
        if found != checksum {
            return Err(CacheError::Damaged { path });
        }
        let module = code
            .deserialize(engine)
            .map_err(|error| CacheError::Engine { path, reason: format!("{error:#}") })?;
        Ok(Some(Self::inspect(engine, module, digest)?))
    }

    /// Writes the native code, so that it is there at once or not at all.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn save(&self, directory: &Path) -> Result<(), CacheError> {
        let path = file(directory, self.0.digest);
        let code = self.0.module.serialize().map_err(|error| CacheError::Engine {
            path: path.clone(),
            reason: format!("{error:#}"),
        })?;
        let header = [
            &compatibility(&self.0.engine)[..],
            self.0.digest.bytes(),
            &(code.len() as u64).to_le_bytes(),
            &crc32fast::hash(&code).to_le_bytes(),
        ]
        .concat();
        write(directory, &path, &header, &code).map_err(|error| CacheError::Io { path, error })
    }
}

/// `None` where the file ends before its header does.
fn read_header(file: &mut fs::File) -> io::Result<Option<[u8; HEADER]>> {
    let mut header = [0; HEADER];
    match file.read_exact(&mut header) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The length of the code, and its checksum.
fn measures(header: &[u8; HEADER]) -> (u64, u32) {
    let (mut length, mut checksum) = ([0; 8], [0; 4]);
    length.copy_from_slice(&header[48..56]);
    checksum.copy_from_slice(&header[56..]);
    (u64::from_le_bytes(length), u32::from_le_bytes(checksum))
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
fn check_owner_only(path: &Path, metadata: &fs::Metadata) -> Result<(), CacheError> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    // An image may bring a cache that belongs to root, who can do anything to us anyway.
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if !ours || metadata.permissions().mode() & 0o022 != 0 {
        return Err(CacheError::Writable { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner_only(_path: &Path, _metadata: &fs::Metadata) -> Result<(), CacheError> {
    Ok(())
}
