//! Modules kept on disk, so that a proxy starts without whoever it got them from: each by its digest, and for every URL
//! the digest that it had last. What is read is checked against its digest; the folder is ours alone (mode 0700).
//! Native code is kept in the same folder by the plugins' runtime. Blocks.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::MAX_MODULE_BYTES;

/// Of the folder; what was not written for longest goes first.
const MAX_BYTES: u64 = 1 << 30;

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
        let (Some(folder), Some(reference)) = (&self.folder, self.reference(url)) else { return };
        let module = folder.join(format!("{}.wasm", hex(digest)));
        let kept = if module.exists() { Ok(()) } else { write(folder, &module, bytes) };
        let named = kept.and_then(|()| write(folder, &reference, hex(digest).as_bytes()));
        let bounded = named.and_then(|()| make_room(folder, MAX_BYTES));
        if let Err(error) = bounded {
            tracing::warn!("keeping the module of {url} in {}: {error}", folder.display());
        }
    }

    fn reference(&self, url: &str) -> Option<PathBuf> {
        let name = hex(&digest_of(url.as_bytes()));
        self.folder.as_ref().map(|folder| folder.join(format!("{name}.url")))
    }
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
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let written =
        options.write(true).create(true).truncate(true).mode(0o600).open(&aside).and_then(
            |mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            },
        );
    let written = written.and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What is left of it would only take space; the error that counts is the first one.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Removes what was not written for longest until the folder has at most `most` bytes.
fn make_room(folder: &Path, most: u64) -> io::Result<()> {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if total <= most {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
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
        fs::write(store.reference("u").unwrap(), "zz").unwrap();
        assert!(store.digest_at("u").is_none());
    }

    #[test]
    fn the_folder_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("old", 100), ("new", 1), ("older", 200)] {
            let path = folder.path().join(name);
            fs::write(&path, "0123456789").unwrap();
            let written = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        }
        make_room(folder.path(), 30).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        make_room(folder.path(), 29).unwrap();
        assert!(!folder.path().join("older").exists() && folder.path().join("old").exists());
        make_room(folder.path(), 10).unwrap();
        assert!(folder.path().join("new").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
