//! Files of the authority: written whole or not at all, keys readable by their owner only.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Largest file that is read: a bundle of certificates is a few KiB.
const MAX_BYTES: u64 = 1024 * 1024;
/// For keys, the state, the audit log.
pub const PRIVATE: u32 = 0o600;
/// For certificates that everybody may have.
pub const PUBLIC: u32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {doing} {}: {reason}", .path.display())]
    Io { doing: &'static str, path: PathBuf, reason: String },
    #[error(
        "{} can be read by others than its owner (mode {mode:03o}), which a private key must not be: run `chmod 600 {}`", .path.display(), .path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} has more than {MAX_BYTES} bytes: this is not a file of certificates", .0.display())]
    TooLarge(PathBuf),
}

impl FileError {
    pub fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), reason: error.to_string() }
    }
}

/// A directory that only its owner may look into; one that is there already is closed to others.
pub fn private_directory(path: &Path) -> Result<(), FileError> {
    let failed = |error: io::Error| FileError::io("make the directory", path, &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// Writes beside, syncs and renames: a reader, also one after a crash, sees the old file or the new one.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    write_beside(path, contents, mode).map_err(|error| FileError::io("write", path, &error))
}

fn write_beside(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    // Whatever the umask: what is public is there for everybody.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => {
            fs::File::open(directory)?.sync_all()
        }
        _ => Ok(()),
    }
}

pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = fs::File::open(path).map_err(|error| FileError::io("read", path, &error))?;
    contents(path, file)
}

/// Reads a private key's file.
///
/// # Errors
/// [`FileError::Exposed`] where others may read it, too.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error: io::Error| FileError::io("read", path, &error);
    let file = fs::File::open(path).map_err(failed)?;
    // Of the open file, which no longer can be swapped.
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    let own = fs::metadata("/proc/self").map_err(failed)?.uid();
    if is_exposed(mode, metadata.uid(), own) {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    contents(path, file)
}

/// A Secret in a pod is root's, and readable by the pod's group: that is how a program that is not root gets a key. PostgreSQL
/// and OpenSSH have the same exception. What is our own must be ours alone.
fn is_exposed(mode: u32, owner: u32, own: u32) -> bool {
    let allowed = if owner == 0 && own != 0 { 0o740 } else { 0o700 };
    mode & !allowed != 0
}

fn contents(path: &Path, file: fs::File) -> Result<Vec<u8>, FileError> {
    let mut contents = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut contents);
    let read = read.map_err(|error| FileError::io("read", path, &error))?;
    if u64::try_from(read).is_ok_and(|read| read <= MAX_BYTES) {
        return Ok(contents);
    }
    Err(FileError::TooLarge(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::is_exposed;

    #[test]
    fn only_roots_files_may_be_the_groups_too() {
        assert!(!is_exposed(0o600, 1000, 1000) && !is_exposed(0o400, 0, 0));
        assert!(is_exposed(0o640, 1000, 1000) && is_exposed(0o440, 0, 0));
        assert!(!is_exposed(0o440, 0, 65532) && !is_exposed(0o640, 0, 65532));
        assert!(is_exposed(0o444, 0, 65532) && is_exposed(0o460, 0, 65532));
    }
}
