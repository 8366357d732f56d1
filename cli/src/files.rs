//! Resources from local files, each with the place it stands at.
//!
//! `files/place.rs` maps a path in a resource (`spec.rules[0].name`) to `file:line`, for problems found here
//! and for those the API reports.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use leno_api::{Resource, yaml};
use serde_json::Value;

mod place;

pub use place::Located;

/// A mesh of thousands of resources fits in a tenth of it; a log file given by mistake does not.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
const STANDARD_INPUT: &str = "-";

/// Which files to read.
#[derive(Clone, Debug, clap::Args)]
pub struct FileArgs {
    /// A file, a directory (its .yaml, .yml and .json files), or - for standard input; may be given repeatedly
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub filename: Vec<PathBuf>,

    /// Read directories with all that is below them
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// One resource and where it was written.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// As given on the command line, or found in a directory.
    pub file: Arc<str>,
    /// What was written, with the line of every field.
    pub document: yaml::Document,
    /// What it means.
    pub resource: Resource,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Loaded {
    pub manifests: Vec<Manifest>,
    /// Why some documents are not among them.
    pub problems: Vec<Located>,
}

/// Why files cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: cannot be read: {source}")]
    Unreadable { file: String, source: io::Error },
    #[error("{file}: is larger than {} MiB; split it", MAX_FILE_BYTES / 1024 / 1024)]
    TooLarge { file: String },
    #[error("{file}: is not text in UTF-8")]
    NotText { file: String },
    #[error("{directory}: has no .yaml, .yml or .json file")]
    EmptyDirectory { directory: String },
    #[error("there is no resource in what -f names")]
    Nothing,
}

/// Reads every resource that `args` name.
pub fn load(args: &FileArgs) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    for (file, text) in read_all(args)? {
        add(&file, &text, &mut loaded);
    }
    if loaded.manifests.is_empty() && loaded.problems.is_empty() {
        return Err(Error::Nothing);
    }
    Ok(loaded)
}

/// Reads the resources in `text`, which came from `file`.
pub fn parse(file: &str, text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    add(&file.into(), text, &mut loaded);
    loaded
}

impl Manifest {
    /// The resource as the API takes it: as written, with its namespace, without its status.
    pub fn body(&self) -> Value {
        let mut body = self.document.value.clone();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("status");
        }
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            let namespace = self.resource.name().namespace.to_string();
            metadata.insert("namespace".to_owned(), Value::String(namespace));
        }
        body
    }

    /// Where `path` stands, with what is to be said about it.
    pub fn locate(&self, path: &str, message: &str) -> Located {
        Located::new(&self.file, &self.document.lines, path, message)
    }
}

/// In the order in which nothing refers to what is not there yet: services, workloads, policies, routes.
pub fn sort_for_apply(manifests: &mut [Manifest]) {
    manifests.sort_by_key(|manifest| match manifest.resource.kind.kind {
        "Service" => 0,
        "Workload" => 1,
        kind if kind.ends_with("Route") => 3,
        _ => 2,
    });
}

fn add(file: &Arc<str>, text: &str, loaded: &mut Loaded) {
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(problem) => {
            loaded.problems.push(Located::of(file, &problem));
            return;
        }
    };
    for document in documents.into_iter().flat_map(place::expand_list) {
        match document.resource() {
            Ok(resource) => {
                loaded.manifests.push(Manifest { file: file.clone(), document, resource });
            }
            Err(invalid) => {
                let located = invalid.problems.iter().map(|problem| Located::of(file, problem));
                loaded.problems.extend(located);
            }
        }
    }
}

/// Every file that `args` name, with its text.
pub fn read_all(args: &FileArgs) -> Result<Vec<(Arc<str>, String)>, Error> {
    let mut texts = Vec::new();
    for path in &args.filename {
        if path.as_os_str() == STANDARD_INPUT {
            let file = "(standard input)";
            texts.push((file.into(), read(file, io::stdin().lock())?));
        } else if path.is_dir() {
            let mut found = Vec::new();
            find(path, args.recursive, &mut found)?;
            if found.is_empty() {
                return Err(Error::EmptyDirectory { directory: path.display().to_string() });
            }
            for path in found {
                texts.push(read_file(&path)?);
            }
        } else {
            texts.push(read_file(path)?);
        }
    }
    Ok(texts)
}

/// The files of a directory in the order of their names. Links to directories are not followed: they may form a ring.
fn find(directory: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let unreadable = |source| Error::Unreadable { file: directory.display().to_string(), source };
    let mut entries = fs::read_dir(directory)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let known = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| EXTENSIONS.contains(&extension));
        if entry.file_type().map_err(unreadable)?.is_dir() {
            if recursive {
                find(&path, recursive, found)?;
            }
        } else if known {
            found.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<(Arc<str>, String), Error> {
    let file = path.display().to_string();
    let opened =
        fs::File::open(path).map_err(|source| Error::Unreadable { file: file.clone(), source })?;
    let text = read(&file, opened)?;
    Ok((file.into(), text))
}

fn read(file: &str, reader: impl Read) -> Result<String, Error> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Unreadable { file: file.to_owned(), source })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge { file: file.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| Error::NotText { file: file.to_owned() })
}

#[cfg(test)]
mod tests;
