//! Modules kept on disk, so that a proxy starts without whoever it got them from: each by its digest, and for every URL
//! the digest that it had last. What is read is checked against its digest; the folder is ours alone (mode 0700).
//! Native code is kept in the same folder by the plugins' runtime. Blocks.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::MAX_MODULE_BYTES;

/// Of the folder; what was not written for longest goes first.
const MAX_BYTES: u64 = 1 << 30;

/// Writing 64 MiB takes no disk so long.
const ABANDONED: Duration = Duration::from_secs(600);

/// SHA-256.
pub(super) type Digest = [u8; 32];

/// Where modules are kept; nowhere without a folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    folder: Option<PathBuf>,
}

impl Store {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The module with that digest, if it is here and whole.
    pub(super) fn module(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.folder.as_ref()?.join(format!("{}.wasm", hex(digest)));
        if fs::metadata(&path).ok()?.len() > MAX_MODULE_BYTES as u64 {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        if digest_of(&bytes) != *digest {
            tracing::warn!("{} is damaged; the module is fetched again", path.display());
            return None;
        }
        Some(bytes.into())
    }

    /// The digest of what `url` led to last.
    pub(super) fn digest_at(&self, url: &str) -> Option<Digest> {
        parse_hex(fs::read_to_string(self.reference(url)?).ok()?.trim())
    }

    /// Keeps a module, as what `url` leads to now.
    pub(super) fn keep(&self, url: &str, digest: &Digest, bytes: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let module = folder.join(format!("{}.wasm", hex(digest)));
        let kept = self.module(digest).map_or_else(|| write(folder, &module, bytes), |_| Ok(()));
        match kept {
            Ok(()) => self.name(url, digest),
            Err(error) => warn(folder, url, &error),
        }
    }

    /// Keeps which digest `url` leads to.
    pub(super) fn name(&self, url: &str, digest: &Digest) {
        let (Some(folder), Some(reference)) = (&self.folder, self.reference(url)) else { return };
        let named = write(folder, &reference, hex(digest).as_bytes());
        if let Err(error) = named.and_then(|()| make_room(folder, MAX_BYTES)) {
            warn(folder, url, &error);
        }
    }

    fn reference(&self, url: &str) -> Option<PathBuf> {
        let name = hex(&digest_of(url.as_bytes()));
        self.folder.as_ref().map(|folder| folder.join(format!("{name}.url")))
    }
}

fn warn(folder: &Path, url: &str, error: &io::Error) {
    tracing::warn!("keeping the module of {url} in {}: {error}", folder.display());
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

pub(super) fn hex(digest: &Digest) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in digest {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads what [`hex`] wrote.
pub(super) fn parse_hex(text: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// There at once or not at all.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Others may write the same here at the same time, some of them as process 1 of another container.
    let aside = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let mut options = fs::OpenOptions::new();
    let written =
        options.write(true).create_new(true).mode(0o600).open(&aside).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    let written = written.and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What is left of it would only take space; the error that counts is the first one.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Removes what was not written for longest until the folder has at most `most` bytes. Other proxies may do the same: what
/// is gone meanwhile is no error. What is not ours stays.
fn make_room(folder: &Path, most: u64) -> io::Result<()> {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_ours(&path) {
            continue;
        }
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && !is_under_way(&path, &metadata) => {
                files.push((metadata.modified()?, metadata.len(), path));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if total <= most {
            break;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= bytes,
        }
    }
    Ok(())
}

/// Somebody else may be writing it; what is left of a proxy that died is old.
fn is_under_way(path: &Path, metadata: &fs::Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|written| written.elapsed().ok());
    path.extension().is_some_and(|ending| ending == "tmp") && age.is_none_or(|age| age < ABANDONED)
}

/// Modules, native code and names of URLs: a digest and an ending, perhaps not written to their end.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (digest, ending) = name.split_once('.').unwrap_or_default();
    let ending = ending.rsplit('.').next().unwrap_or_default();
    parse_hex(digest).is_some() && ["wasm", "cwasm", "url", "tmp"].contains(&ending)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_found_by_digest_and_by_url() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("modules");
        let store = Store::new(Some(path.clone()));
        let digest = digest_of(b"module");
        assert!(store.module(&digest).is_none() && store.digest_at("oci://a/b:c").is_none());
        store.keep("oci://a/b:c", &digest, b"module");
        assert_eq!(store.module(&digest).unwrap(), "module");
        assert_eq!(store.digest_at("oci://a/b:c"), Some(digest));
        assert_eq!(store.digest_at("oci://a/b:d"), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(parse_hex(&hex(&digest)), Some(digest));
        let nowhere = Store::default();
        nowhere.keep("oci://a/b:c", &digest, b"module");
        assert!(nowhere.module(&digest).is_none());
    }

    #[test]
    fn what_is_damaged_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(Some(folder.path().to_owned()));
        let digest = digest_of(b"module");
        store.keep("u", &digest, b"module");
        fs::write(folder.path().join(format!("{}.wasm", hex(&digest))), "other").unwrap();
        assert!(store.module(&digest).is_none());
        store.keep("u", &digest, b"module");
        assert_eq!(store.module(&digest).unwrap(), "module", "it is written anew");
        fs::write(store.reference("u").unwrap(), "zz").unwrap();
        assert!(store.digest_at("u").is_none());
    }

    #[test]
    fn the_folder_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let digest = hex(&digest_of(name.as_bytes()));
            folder.path().join(format!("{digest}.wasm"))
        };
        fs::write(folder.path().join("not-ours.wasm"), "0123456789").unwrap();
        for (name, age) in [("old", 100), ("new", 1), ("older", 200)] {
            let path = path(name);
            fs::write(&path, "0123456789").unwrap();
            let written = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        }
        make_room(folder.path(), 30).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
        make_room(folder.path(), 29).unwrap();
        assert!(!path("older").exists() && path("old").exists());
        make_room(folder.path(), 10).unwrap();
        assert!(path("new").exists() && !path("old").exists());
        make_room(folder.path(), 0).unwrap();
        assert!(folder.path().join("not-ours.wasm").exists());
    }

    #[test]
    fn many_may_keep_the_same_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let digest = digest_of(b"module");
        let keep = |_| {
            let folder = folder.path().to_owned();
            std::thread::spawn(move || {
                let path = folder.join(format!("{}.wasm", hex(&digest_of(b"module"))));
                for _ in 0..50 {
                    write(&folder, &path, b"module").unwrap();
                    make_room(&folder, 0).unwrap();
                }
            })
        };
        let keeping: Vec<_> = (0..4).map(keep).collect();
        keeping.into_iter().for_each(|thread| thread.join().unwrap());
        let store = Store::new(Some(folder.path().to_owned()));
        store.keep("u", &digest, b"module");
        assert_eq!(store.module(&digest).unwrap(), "module");
    }
}
