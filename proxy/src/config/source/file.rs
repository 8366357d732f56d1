//! A configuration file, watched. At start it must be right; later, what is wrong keeps its last good version.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use leno_api::{
    Invalid, Key, Problem, Resource,
    model::{Model, rate_limit_policy::LimitScope},
    yaml::{self, Document},
};
use notify::{
    Event, EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use sha2::{Digest as _, Sha256};
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
    whole: Digest,
    /// In their order.
    documents: Vec<Held>,
}

/// What a document brought, by its text: one that has not changed is not parsed again, so that a change costs the same
/// however long the file is.
#[derive(Clone, Debug)]
struct Held {
    /// All zero for a document with something wrong: it is read again each time, so that it is reported until it is mended.
    digest: Digest,
    keys: Keys,
}

/// A file may have ten thousand documents of one resource each.
#[derive(Clone, Debug)]
enum Keys {
    One(Key),
    Several(Box<[Key]>),
}

/// The first half of SHA-256: enough to tell the documents of one file apart.
type Digest = [u8; 16];

/// What a file says.
struct Contents {
    documents: Vec<Held>,
    /// From documents that were not there before.
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
        let contents = parse(&path, &text, &[])?;
        if !contents.problems.is_empty() {
            let problems = contents.problems.into_iter().map(|(_, problem)| problem).collect();
            return Err(Error::Invalid { path, problems });
        }
        let mut source = Self { path, whole: digest(&text), documents: Vec::new() };
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
        let names = file_names(&self.path);
        let mut watcher = notify::recommended_watcher(move |event| {
            if is_news(&event, &names) {
                // A full channel holds the news already.
                let _ = events.try_send(());
            }
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
            Ok(text) => text,
            Err(error) => return Some(rejected(&self.path, &error)),
        };
        let whole = digest(&text);
        if whole == self.whole {
            return None;
        }
        self.whole = whole;
        match parse(&self.path, &text, &self.documents) {
            Ok(contents) => Some(self.difference(contents)),
            Err(error) => Some(rejected(&self.path, &error)),
        }
    }

    fn difference(&mut self, contents: Contents) -> Change {
        let mut change = Change { upserts: contents.items, ..Change::default() };
        let mut kept: HashSet<String> = HashSet::new();
        for (name, problem) in contents.problems {
            let at = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
            let path = self.path.display();
            tracing::error!("{path}{at}: {name}: {problem}; its last good version stays");
            kept.insert(name.clone());
            change.rejected.push((name, problem.to_string()));
        }
        let before = std::mem::replace(&mut self.documents, contents.documents);
        let present: HashSet<&Key> =
            self.documents.iter().flat_map(|held| held.keys.iter()).collect();
        let before = before.iter().flat_map(|held| held.keys.iter());
        let gone = before.filter(|key| !present.contains(key)).cloned();
        // What was wrong this time keeps its place.
        let (kept, gone): (Vec<_>, Vec<_>) = gone.partition(|key| kept.contains(&key.to_string()));
        change.removed = gone;
        if !kept.is_empty() {
            self.documents.push(Held { digest: Digest::default(), keys: kept.into() });
        }
        self.documents.shrink_to_fit();
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

/// Reads those documents of `text` that are not among `known`.
fn parse(path: &Path, text: &str, known: &[Held]) -> Result<Contents, Error> {
    let mut known = Known { documents: known, next: 0, places: None };
    let mut contents = Contents { documents: Vec::new(), items: Vec::new(), problems: Vec::new() };
    for (lines_before, part) in documents(text) {
        let digest = digest(part);
        if let Some(held) = known.find(digest) {
            contents.documents.push(held.clone());
            continue;
        }
        let located = |mut problem: Problem| {
            problem.line = problem.line.map(|line| line + lines_before);
            problem
        };
        let parsed = yaml::documents(part).map_err(|problem| Error::Invalid {
            path: path.to_owned(),
            problems: vec![located(problem)],
        })?;
        let (mut keys, mut whole) = (Vec::new(), true);
        for document in parsed {
            let resource = document.resource().and_then(|resource| {
                let problems = without_control_plane(&resource, &document);
                if problems.is_empty() { Ok(resource) } else { Err(Invalid { problems }) }
            });
            match resource {
                Ok(resource) => {
                    let json = document.value.to_string().into();
                    keys.push(resource.key());
                    contents.items.push(Item { resource, json, version: String::new() });
                }
                Err(invalid) => {
                    whole = false;
                    let name = name_of(&document.value);
                    let named = |problem| (name.clone(), located(problem));
                    contents.problems.extend(invalid.problems.into_iter().map(named));
                }
            }
        }
        let digest = if whole { digest } else { Digest::default() };
        contents.documents.push(Held { digest, keys: keys.into() });
    }
    Ok(contents)
}

/// What a valid resource asks for that only a control plane can do.
fn without_control_plane(resource: &Resource, document: &Document) -> Vec<Problem> {
    let Model::RateLimitPolicy(policy) = &resource.model else { return Vec::new() };
    let limits = policy.limits.iter().enumerate();
    let global = limits.filter(|(_, limit)| limit.scope == LimitScope::Global);
    let problem = |(at, _)| {
        let path = format!("spec.limits[{at}].scope");
        let message = "Global limits are shared out by the control plane, and this proxy has none: use Local, or start it with --control-plane";
        let line = document.lines.get(&path).copied();
        Problem { path, message: message.to_owned(), line }
    };
    global.map(problem).collect()
}

/// The documents that were there before, to be asked for in the order in which they are now: mostly the same.
struct Known<'a> {
    documents: &'a [Held],
    /// What probably comes next.
    next: usize,
    /// Where each is; made when the order is another one.
    places: Option<HashMap<Digest, usize>>,
}

impl Known<'_> {
    fn find(&mut self, digest: Digest) -> Option<&Held> {
        let is_next = self.documents.get(self.next).is_some_and(|held| held.digest == digest);
        if !is_next {
            let numbered = || self.documents.iter().zip(0..);
            let places = self
                .places
                .get_or_insert_with(|| numbered().map(|(held, at)| (held.digest, at)).collect());
            self.next = *places.get(&digest)?;
        }
        self.next += 1;
        self.documents.get(self.next - 1)
    }
}

impl Keys {
    fn iter(&self) -> std::slice::Iter<'_, Key> {
        match self {
            Self::One(key) => std::slice::from_ref(key).iter(),
            Self::Several(keys) => keys.iter(),
        }
    }
}

impl From<Vec<Key>> for Keys {
    fn from(mut keys: Vec<Key>) -> Self {
        match keys.pop() {
            Some(only) if keys.is_empty() => Self::One(only),
            last => Self::Several(keys.into_iter().chain(last).collect()),
        }
    }
}

/// The documents of `text`, each with the number of lines before it. A line that begins with `---` always begins a
/// document (YAML 1.2 section 9.1.2).
fn documents(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let (mut rest, mut lines) = (text, 0);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest
            .match_indices("\n---")
            .map(|(at, _)| at + 1)
            .find(|at| rest[at + 3..].chars().next().is_none_or(char::is_whitespace));
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        let before = lines;
        lines += u32::try_from(part.matches('\n').count()).unwrap_or(u32::MAX);
        rest = after;
        Some((before, part))
    })
}

fn digest(text: &str) -> Digest {
    let whole: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    std::array::from_fn(|at| whole[at])
}

/// What a document that is not valid calls itself.
fn name_of(value: &serde_json::Value) -> String {
    let text = |pointer| value.pointer(pointer).and_then(serde_json::Value::as_str);
    let kind = text("/kind").unwrap_or("Unknown");
    let namespace = text("/metadata/namespace").unwrap_or("default");
    format!("{kind} {namespace}/{}", text("/metadata/name").unwrap_or("?"))
}

/// What the file at `path` is called, and what it is a link to.
fn file_names(path: &Path) -> [OsString; 2] {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
    [name(path), std::fs::canonicalize(path).map_or_else(|_| name(path), |path| name(&path))]
}

/// Whether the file called one of `names` may have changed. Reading the file is an event, too, and would be its own cause. Others in
/// its folder are no news, however often they are written, but for those that begin with `..`: Kubernetes changes a
/// mounted file by pointing the link `..data` elsewhere.
fn is_news(event: &notify::Result<Event>, names: &[OsString; 2]) -> bool {
    let Ok(event) = event else { return true };
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let ours = |path: &PathBuf| {
        let changed = path.file_name().unwrap_or_default();
        names.iter().any(|name| name == changed) || changed.as_encoded_bytes().starts_with(b"..")
    };
    (!event.kind.is_access() || event.kind == written)
        && (event.paths.is_empty() || event.paths.iter().any(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";

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
    fn reading_the_file_and_writing_others_is_no_news() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("mesh.yaml"), dir.path().join("link.yaml"));
        std::fs::write(&path, SERVICE).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let called = file_names(&link);
        let (events, seen) = std::sync::mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event| {
            let news = is_news(&event, &called);
            let _ = events.send((news, event.unwrap().paths));
        })
        .unwrap();
        watcher.watch(dir.path(), RecursiveMode::NonRecursive).unwrap();
        std::fs::read(&path).unwrap();
        std::fs::write(dir.path().join("other.yaml"), SERVICE).unwrap();
        std::fs::write(&path, SERVICE).unwrap();
        let next = || seen.recv_timeout(Duration::from_secs(60)).unwrap();
        let first = std::iter::repeat_with(next).find(|(news, _)| *news);
        assert_eq!(first.unwrap().1, [path], "of what the link leads to");
        std::os::unix::fs::symlink("elsewhere", dir.path().join("..data")).unwrap();
        let swapped = dir.path().join("..data");
        assert!(
            std::iter::repeat_with(next).any(|(news, paths)| news && paths == [swapped.clone()])
        );
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

        let wrong = two.replace("name: b", "name: c").replacen("80", "0", 1);
        for text in [wrong.clone(), format!("{wrong}# still wrong\n")] {
            std::fs::write(&path, text).unwrap();
            let change = source.reread().unwrap();
            assert_eq!((names(&change).1, change.rejected.len()), (vec![], 1), "{change:?}");
        }

        // A resource that was wrong for a while is not forgotten when it goes for good.
        std::fs::write(&path, "a: [").unwrap();
        let change = source.reread().unwrap();
        assert_eq!(names(&change), (vec![], vec![], 1));

        std::fs::write(&path, SERVICE).unwrap();
        let change = source.reread().unwrap();
        assert_eq!(names(&change).1, ["Service default/c"]);
        assert_eq!(change.rejected.len(), 0);
    }

    #[test]
    fn documents_may_change_places() {
        let document =
            |name: &&str| format!("---\n{}", SERVICE.replace("name: a", &format!("name: {name}")));
        let text = |names: &[&str]| names.iter().map(document).collect::<String>();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let mut written = vec!["a", "b", "c", "d"];
        std::fs::write(&path, text(&written)).unwrap();
        let (mut source, _) = FileSource::open(path.clone()).unwrap();
        for (now, new, gone) in [
            (vec!["a", "x", "c", "d"], vec!["x"], vec!["b"]),
            (vec!["d", "c", "x", "a"], vec![], vec![]),
            (vec!["y", "d", "c", "c", "a"], vec!["y"], vec!["x"]),
            (vec!["a", "c", "y"], vec![], vec!["d"]),
            (vec!["a"], vec![], vec!["c", "y"]),
        ] {
            std::fs::write(&path, text(&now)).unwrap();
            let (upserts, mut removed, rejected) = names(&source.reread().unwrap());
            let called = |names: &[&str]| {
                names.iter().map(|name| format!("Service default/{name}")).collect::<Vec<_>>()
            };
            removed.sort();
            assert_eq!(
                (upserts, removed, rejected),
                (called(&new), called(&gone), 0),
                "{written:?} to {now:?}"
            );
            written = now;
        }
    }

    #[test]
    fn lines_count_from_the_beginning_of_the_file() {
        let two = format!("# first\n{SERVICE}--- # second\n{}", SERVICE.replace("80", "0"));
        let parts: Vec<_> = documents(&two).collect();
        assert_eq!((parts.len(), parts[1].0), (2, 5));
        assert_eq!(parts.iter().map(|(_, part)| *part).collect::<String>(), two);
        let contents = parse(Path::new("x"), &two, &[]).unwrap();
        assert_eq!((contents.items.len(), contents.problems[0].1.line), (1, Some(10)));
        assert_eq!(documents("a: |\n  x\n----\n").count(), 1);
    }
}
