//! A configuration file, watched. At start it must be right; later, what is wrong keeps its last good version.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use leno_api::{Key, Problem, yaml};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{Change, Item, Update};

/// Largest file that is read. A mesh of 10,000 routes is about 5 MB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Editors write a file in several steps; what is read in between would be half of it.
const SETTLE: Duration = Duration::from_millis(10);
/// The file is looked at this often, too: some file systems do not report changes.
const POLL: Duration = Duration::from_secs(5);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{path}: {source}; --config names the file with the mesh's resources")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than anything people write.
    #[error("{path} is larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Some of it is wrong; one line each.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Problem>,
    },
    /// The file cannot be watched.
    #[error("watching {path}: {source}")]
    Watch {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| match problem.line {
        Some(line) => format!("{}:{line}: {problem}", path.display()),
        None => format!("{}: {problem}", path.display()),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A file as it was read last.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    text: String,
    known: HashMap<Key, Arc<str>>,
}

/// What a file says.
struct Contents {
    items: Vec<Item>,
    problems: Vec<(String, Problem)>,
}

impl FileSource {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When anything in it is wrong: a proxy must not start with a part of what was meant.
    pub fn open(path: PathBuf) -> Result<(Self, Change), Error> {
        let text = read(&path)?;
        let contents = parse(&path, &text)?;
        if !contents.problems.is_empty() {
            let problems = contents.problems.into_iter().map(|(_, problem)| problem).collect();
            return Err(Error::Invalid { path, problems });
        }
        let mut source = Self { path, text, known: HashMap::new() };
        let change = source.difference(contents);
        Ok((source, change))
    }

    /// Sends a change whenever the file has changed, until nobody listens any more.
    ///
    /// # Errors
    /// When the file cannot be watched at all.
    pub async fn follow(mut self, updates: mpsc::Sender<Update>) -> Result<(), Error> {
        let (events, mut changed) = mpsc::channel(1);
        let watch = |source| Error::Watch { path: self.path.clone(), source };
        let mut watcher = notify::recommended_watcher(move |_| {
            // A full channel holds the news already.
            let _ = events.try_send(());
        })
        .map_err(watch)?;
        // The folder, not the file: editors and Kubernetes replace files instead of writing to them.
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(watch)?;
        loop {
            let _ = tokio::time::timeout(POLL, changed.recv()).await;
            tokio::time::sleep(SETTLE).await;
            while changed.try_recv().is_ok() {}
            let Some(change) = self.reread() else { continue };
            if updates.send(Update::Changed(change)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// What changed since the last reading; `None` for nothing. A file that cannot be read, or is not YAML, changes
    /// nothing but is reported.
    fn reread(&mut self) -> Option<Change> {
        let rejected = |path: &Path, error: &Error| {
            tracing::error!("{error}; the configuration in force stays");
            Change {
                rejected: vec![(format!("File {}", path.display()), error.to_string())],
                ..Change::default()
            }
        };
        let text = match read(&self.path) {
            Ok(text) if text == self.text => return None,
            Ok(text) => text,
            Err(error) => return Some(rejected(&self.path, &error)),
        };
        self.text = text;
        match parse(&self.path, &self.text) {
            Ok(contents) => Some(self.difference(contents)),
            Err(error) => Some(rejected(&self.path, &error)),
        }
    }

    fn difference(&mut self, contents: Contents) -> Change {
        let mut change = Change::default();
        // What was wrong this time keeps its place.
        let mut kept: Vec<String> = Vec::new();
        for (name, problem) in contents.problems {
            let at = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
            tracing::error!(
                "{}{at}: {name}: {problem}; its last good version stays",
                self.path.display()
            );
            kept.push(name.clone());
            change.rejected.push((name, problem.to_string()));
        }
        let mut now = HashMap::new();
        for item in contents.items {
            let key = item.resource.key();
            if self.known.get(&key) != Some(&item.json) {
                change.upserts.push(item.clone());
            }
            now.insert(key, item.json);
        }
        for (key, json) in self.known.drain() {
            if now.contains_key(&key) {
                continue;
            }
            if kept.contains(&key.to_string()) {
                now.insert(key, json);
            } else {
                change.removed.push(key);
            }
        }
        self.known = now;
        change
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn parse(path: &Path, text: &str) -> Result<Contents, Error> {
    let documents = yaml::documents(text)
        .map_err(|problem| Error::Invalid { path: path.to_owned(), problems: vec![problem] })?;
    let mut contents = Contents { items: Vec::new(), problems: Vec::new() };
    for document in documents {
        match document.resource() {
            Ok(resource) => {
                let item = Item {
                    resource,
                    json: document.value.to_string().into(),
                    version: String::new(),
                };
                contents.items.push(item);
            }
            Err(invalid) => {
                let name = name_of(&document.value);
                contents
                    .problems
                    .extend(invalid.problems.into_iter().map(|problem| (name.clone(), problem)));
            }
        }
    }
    Ok(contents)
}

/// What a document that is not valid calls itself.
fn name_of(value: &serde_json::Value) -> String {
    let text = |pointer| value.pointer(pointer).and_then(serde_json::Value::as_str);
    let kind = text("/kind").unwrap_or("Unknown");
    let namespace = text("/metadata/namespace").unwrap_or("default");
    format!("{kind} {namespace}/{}", text("/metadata/name").unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";

    use leno_api::Resource;

    fn names(change: &Change) -> (Vec<String>, Vec<String>, usize) {
        let upserts = change
            .upserts
            .iter()
            .map(|item: &Item| Resource::key(&item.resource).to_string())
            .collect();
        (upserts, change.removed.iter().map(ToString::to_string).collect(), change.rejected.len())
    }

    #[test]
    fn a_wrong_file_at_start_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let error = FileSource::open(path.clone()).unwrap_err().to_string();
        assert!(error.contains("mesh.yaml") && error.contains("--config"), "{error}");
        std::fs::write(&path, SERVICE.replace("port: 80", "port: 80, prot: x")).unwrap();
        let error = FileSource::open(path).unwrap_err().to_string();
        assert!(error.contains("mesh.yaml:4: spec.ports[0].prot: unknown field `prot`"), "{error}");
    }

    #[test]
    fn only_differences_are_told_and_a_bad_resource_keeps_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let two = format!("{SERVICE}---\n{}", SERVICE.replace("name: a", "name: b"));
        std::fs::write(&path, &two).unwrap();
        let (mut source, change) = FileSource::open(path.clone()).unwrap();
        assert_eq!(names(&change).0.len(), 2);
        assert!(source.reread().is_none());

        std::fs::write(&path, two.replace("name: b", "name: c")).unwrap();
        let change = source.reread().unwrap();
        assert_eq!(
            names(&change),
            (vec!["Service default/c".into()], vec!["Service default/b".into()], 0)
        );

        std::fs::write(&path, two.replace("name: b", "name: c").replacen("80", "0", 1)).unwrap();
        let change = source.reread().unwrap();
        assert_eq!(names(&change), (vec![], vec![], 1), "{change:?}");

        std::fs::write(&path, "a: [").unwrap();
        let change = source.reread().unwrap();
        assert_eq!(names(&change), (vec![], vec![], 1));

        std::fs::write(&path, SERVICE).unwrap();
        let change = source.reread().unwrap();
        assert_eq!(names(&change), (vec![], vec!["Service default/c".into()], 0));
    }
}
