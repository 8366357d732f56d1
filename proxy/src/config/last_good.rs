//! The last good resources on disk, so that a proxy starts without its control plane. Mode 0600, written aside and
//! renamed, with a checksum: a file that was cut off or changed is refused, never half-used.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use leno_api::Resource;
use sha2::{Digest, Sha256};

use super::{
    source::{Item, Packer},
    text::Text,
};

/// First line; another number is another format.
const HEADER: &str = "leno last good configuration 1";
/// Larger files are not ours.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Why the last good state cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path}: {reason}; it is ignored, and replaced once the control plane has answered")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What was in force.
#[derive(Debug)]
pub struct State {
    /// Every resource.
    pub items: Vec<Item>,
    /// Hosts that our application calls.
    pub hosts: Vec<String>,
}

/// Writes `hosts` in one line, then `texts`, one JSON object a line.
///
/// # Errors
/// When the disk says no; the file from before is untouched then.
pub fn save(path: &Path, hosts: &[String], texts: &[Text]) -> Result<(), Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut body = hosts.join(" ");
    body.push('\n');
    for text in texts {
        text.write(&mut body);
        body.push('\n');
    }
    let aside = path.with_extension("new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .map_err(failed)?;
    write!(file, "{HEADER}\n{}\n{body}", checksum(&body)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&aside, path).map_err(failed)
}

/// Reads what was saved; `None` when nothing was. A resource that a newer version of Leno wrote and this one does not
/// understand makes the whole file unusable: starting with a part of the policies would be worse than waiting.
///
/// # Errors
/// When it cannot be read, or is not what was written.
pub fn load(path: &Path) -> Result<Option<State>, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(damaged("is too large".to_owned()));
        }
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let (header, rest) = text.split_once('\n').ok_or_else(|| damaged("is cut off".to_owned()))?;
    if header != HEADER {
        return Err(damaged("was written by another version".to_owned()));
    }
    let (sum, body) = rest.split_once('\n').ok_or_else(|| damaged("is cut off".to_owned()))?;
    if sum != checksum(body) {
        return Err(damaged("does not fit its checksum".to_owned()));
    }
    let mut packer = Packer::default();
    let read = |line: &str| {
        let value = serde_json::from_str(line).map_err(|error| damaged(error.to_string()))?;
        let resource =
            Resource::from_json(value).map_err(|invalid| damaged(invalid.to_string()))?;
        let version = resource.metadata.resource_version.clone().unwrap_or_default();
        Ok(packer.item(resource, line, &version))
    };
    let mut lines = body.lines();
    let hosts = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let items = lines.map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(State { items, hosts }))
}

fn checksum(body: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(body.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OBJECT: &str = r#"{"apiVersion":"leno.dev/v1alpha1","kind":"Service","metadata":{"name":"a","resourceVersion":"7"},"spec":{"ports":[{"port":80}]}}"#;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("last-good");
        assert!(load(&path).unwrap().is_none());
        save(&path, &["a.b".to_owned(), "c".to_owned()], &[OBJECT.into()]).unwrap();
        let State { items, hosts } = load(&path).unwrap().unwrap();
        assert_eq!(hosts, ["a.b", "c"]);
        assert_eq!(
            (items[0].resource.key().to_string(), &*items[0].version),
            ("Service default/a".into(), "7")
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let text = fs::read_to_string(&path).unwrap();
        for broken in [
            String::new(),
            text[..text.len() - 3].to_owned(),
            text.replace("80", "81"),
            text.replace(HEADER, "leno last good configuration 2"),
        ] {
            fs::write(&path, &broken).unwrap();
            assert!(matches!(load(&path), Err(Error::Damaged { .. })), "{broken}");
        }
    }
}
