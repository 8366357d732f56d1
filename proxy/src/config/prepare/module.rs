//! How the bytes of a module are had, from wherever they are.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{StatusCode, Uri};
use leno_api::model::wasm_plugin::{Source, WasmPlugin};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    MAX_MODULE_BYTES, MODULE_TIME_LIMIT, oci,
    store::{Digest, Store, digest_of, hex},
};
use crate::http::fetch::{FetchError, Fetcher, Wanted};

/// Modules fetched at once: each may have 64 MiB.
const MAX_FETCHES: usize = 16;
const MAX_REDIRECTS: usize = 5;
/// A file that was written so shortly before it was read may be written again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// The bytes of a module and their digest.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Option<FileState>);

/// When it was written, its length, and which file it is: another may have taken its name, of the same length and time.
type FileState = (SystemTime, u64, (u64, u64), (i64, i64));

/// Gets modules.
#[derive(Debug)]
pub(super) struct Modules {
    fetcher: Fetcher,
    store: Store,
    permits: Arc<Semaphore>,
}

impl Modules {
    pub(super) fn new(store: Store) -> Self {
        Self { fetcher: Fetcher::default(), store, permits: Arc::new(Semaphore::new(MAX_FETCHES)) }
    }

    /// The module of a plugin. What is known by its digest is not fetched again; where nothing can be fetched and
    /// `fall_back`, what its URL led to before.
    ///
    /// # Errors
    /// For people: why there is none.
    pub(super) async fn get(&self, spec: &WasmPlugin, fall_back: bool) -> Result<Module, String> {
        if let Some(known) = self.known(spec).await {
            return Ok(known);
        }
        let url = spec.source.url();
        // Before it is looked at: whatever was written later than that is not settled.
        let now = SystemTime::now();
        let state = stamp(spec).await;
        let fetched = self.fetch(&spec.source).await.and_then(|bytes| check(bytes, spec));
        match fetched {
            Ok(module) => {
                let (store, kept) = (self.store.clone(), module.clone());
                let keeping = spawn_blocking(move || store.keep(&url, &kept.digest, &kept.bytes));
                // The store says itself what it cannot do; a panic there is counted as any other.
                let _ = keeping.await;
                self.remember(spec, state, module.digest, now).await;
                Ok(module)
            }
            Err(reason) => {
                let reason = format!("cannot be fetched from {url}: {reason}");
                let before = if fall_back { self.before(spec, url).await } else { None };
                if before.is_some() {
                    tracing::warn!("plugin {}: {reason}; using what was there before", spec.name);
                }
                before.ok_or(reason)
            }
        }
    }

    /// The digest of a plugin's module, where it is known without the module: nothing else could come of its URL.
    pub(super) async fn digest(&self, spec: &WasmPlugin) -> Option<Digest> {
        if spec.sha256.is_some() {
            return spec.sha256;
        }
        let name = match &spec.source {
            Source::Oci(image) if image.digest.is_some() => spec.source.url(),
            Source::File(_) => stamp(spec).await?.name(&spec.source.url())?,
            Source::Oci(_) | Source::Http(_) => return None,
        };
        let store = self.store.clone();
        spawn_blocking(move || store.digest_at(&name)).await.ok().flatten()
    }

    /// Which digest a file has in this state, so that it is not read for that the next time.
    async fn remember(
        &self,
        spec: &WasmPlugin,
        state: Option<Stamp>,
        digest: Digest,
        now: SystemTime,
    ) {
        let Some(state) = state.filter(|state| state.is_settled(now)) else { return };
        let Some(name) = state.name(&spec.source.url()) else { return };
        // The bytes are those of this state if it was the same before and after they were read.
        if stamp(spec).await == Some(state) {
            let store = self.store.clone();
            let _ = spawn_blocking(move || store.name(&name, &digest)).await;
        }
    }

    /// What needs no fetching.
    async fn known(&self, spec: &WasmPlugin) -> Option<Module> {
        let digest = self.digest(spec).await?;
        self.stored(move |_| Some(digest)).await
    }

    async fn before(&self, spec: &WasmPlugin, url: String) -> Option<Module> {
        let wanted = spec.sha256;
        let digest = move |store: &Store| {
            store.digest_at(&url).filter(|found| wanted.is_none_or(|wanted| wanted == *found))
        };
        self.stored(digest).await
    }

    async fn stored(
        &self,
        digest: impl FnOnce(&Store) -> Option<Digest> + Send + 'static,
    ) -> Option<Module> {
        let store = self.store.clone();
        let reading = spawn_blocking(move || {
            let digest = digest(&store)?;
            let bytes = store.module(&digest)?;
            Some(Module { digest, bytes })
        });
        reading.await.ok().flatten()
    }

    async fn fetch(&self, source: &Source) -> Result<Bytes, String> {
        let permit = self.permits.acquire().await;
        let bytes = match source {
            Source::File(path) => {
                let path = path.clone();
                let reading = spawn_blocking(move || read(&path));
                reading.await.unwrap_or_else(|error| Err(error.to_string()))
            }
            Source::Http(url) => self.download(url).await.map_err(|error| error.to_string()),
            Source::Oci(image) => {
                let pulled = oci::pull(&self.fetcher, image, &self.store).await;
                pulled.map_err(|error| error.to_string())
            }
        };
        drop(permit);
        bytes
    }

    async fn download(&self, url: &str) -> Result<Bytes, FetchError> {
        let url: Uri = url.parse().map_err(|_| FetchError::Url("not a URL"))?;
        let wanted = Wanted {
            accept: "application/wasm, */*",
            authorization: None,
            max_bytes: MAX_MODULE_BYTES,
            time_limit: MODULE_TIME_LIMIT,
            redirects: MAX_REDIRECTS,
        };
        let answer = self.fetcher.ask(&url, &wanted).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(FetchError::Status(status)),
        }
    }
}

impl Stamp {
    /// Under which a file is known in this state; `None` where there is none.
    fn name(&self, url: &str) -> Option<String> {
        let (modified, length, which, changed) = self.0?;
        let modified = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(format!("{url} {modified:?} {length} {which:?} {changed:?}"))
    }

    /// Whether whoever changes the file from `now` on changes its times, too.
    fn is_settled(&self, now: SystemTime) -> bool {
        let Some((modified, _, _, (seconds, _))) = self.0 else { return false };
        let seconds = u64::try_from(seconds).unwrap_or_default();
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds + 1));
        let long_ago = |time| now.duration_since(time).is_ok_and(|age| age >= SETTLED);
        changed.is_some_and(long_ago) && long_ago(modified)
    }
}

/// How a file is now, where the plugin's module is one that may change under its name.
pub(super) async fn stamp(spec: &WasmPlugin) -> Option<Stamp> {
    let Source::File(path) = &spec.source else { return None };
    if spec.sha256.is_some() {
        return None;
    }
    let path = path.clone();
    let looking = spawn_blocking(move || {
        let metadata = fs::metadata(path).ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let which = (metadata.dev(), metadata.ino());
        Some((metadata.modified().ok()?, metadata.len(), which, changed))
    });
    looking.await.ok().map(Stamp)
}

/// How often a file is looked at.
pub(super) const POLL: Duration = Duration::from_secs(1);

fn check(bytes: Bytes, spec: &WasmPlugin) -> Result<Module, String> {
    let digest = digest_of(&bytes);
    match spec.sha256 {
        Some(wanted) if wanted != digest => {
            Err(format!("it has the sha256 {}, not {} as it should", hex(&digest), hex(&wanted)))
        }
        _ => Ok(Module { digest, bytes }),
    }
}

fn read(path: &str) -> Result<Bytes, String> {
    // A pipe that nobody writes to must not hold the thread for ever.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let most = MAX_MODULE_BYTES as u64;
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_MODULE_BYTES {
        return Err(format!("it has more than {MAX_MODULE_BYTES} bytes"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests;
