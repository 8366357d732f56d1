//! Tries until there is a plugin.

use std::{sync::Arc, thread, time::Duration};

use leno_api::model::{
    ObjectName,
    wasm_plugin::{Source, WasmPlugin},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::sleep,
};

use super::{
    Engine,
    module::{self, Module, POLL, Stamp},
    store::Digest,
};
use crate::filter::wasm::{LoadError, Plugin, Runtime};

/// The wait after the first failure; each further one is twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// What a task has to say.
#[derive(Debug)]
pub struct Done {
    /// Which plugin.
    pub(super) name: ObjectName,
    /// Which offer of it.
    pub(super) id: u64,
    /// The plugin, or why there is none.
    pub(super) result: Result<Arc<Plugin>, String>,
}

/// One offer of a plugin.
pub(super) struct Task {
    pub(super) id: u64,
    pub(super) spec: Arc<WasmPlugin>,
    /// What is live, so that the same is not loaded again.
    pub(super) live: Option<Arc<Plugin>>,
    pub(super) engine: Engine,
    pub(super) done: mpsc::Sender<Done>,
}

/// Why there is no plugin, and whether that may be otherwise the next time.
struct Failure {
    reason: String,
    lasting: bool,
}

impl Task {
    /// Goes on until there is nothing that could change any more.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let stamp = module::stamp(&self.spec).await;
            let (retry, result) = match self.attempt().await {
                Ok(plugin) => {
                    failures = 0;
                    self.live = Some(plugin.clone());
                    (None, Ok(plugin))
                }
                Err(Failure { reason, lasting }) => {
                    let wait = backoff(failures, rand::random());
                    failures = failures.saturating_add(1);
                    ((!lasting).then_some(wait), Err(reason))
                }
            };
            let done = Done { name: self.spec.name.clone(), id: self.id, result };
            if self.done.send(done).await.is_err() || !self.wait(stamp, retry).await {
                return;
            }
        }
    }

    async fn attempt(&self) -> Result<Arc<Plugin>, Failure> {
        // With native code at hand its bytes are not needed, nor whoever has them.
        if let Some(digest) = self.engine.modules.digest(&self.spec).await {
            if let Some(live) = self.live_of(digest) {
                return Ok(live);
            }
            let cached = self.load(digest, &self.engine.starting, move |runtime, label, spec| {
                runtime.load_cached(label, digest, spec)
            });
            if let Some(plugin) = cached.await? {
                return Ok(plugin);
            }
        }
        let got = self.engine.modules.get(&self.spec, self.live.is_none()).await;
        // Whoever has it may have another one the next time.
        let module = got.map_err(|reason| Failure { reason, lasting: false })?;
        if let Some(live) = self.live_of(module.digest) {
            return Ok(live);
        }
        let Module { digest, bytes } = module;
        self.load(digest, &self.engine.compiling, move |runtime, label, spec| {
            runtime.load(label, digest, &bytes, spec)
        })
        .await
    }

    /// What is live, where it is what this module would become.
    fn live_of(&self, digest: Digest) -> Option<Arc<Plugin>> {
        let version = Runtime::version_of(digest, &self.spec);
        self.live.clone().filter(|live| *live.version() == *version)
    }

    /// Off this thread: it would hold up everything else that is not traffic. A thread of its own takes with it what the
    /// compiler's memory has grown to; one that is kept would keep that, too.
    async fn load<T: Send + 'static>(
        &self,
        digest: Digest,
        turn: &Arc<Semaphore>,
        load: impl FnOnce(&Runtime, &str, &WasmPlugin) -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = turn.clone().acquire_owned().await;
        let (runtime, spec) = (self.engine.runtime.clone(), self.spec.clone());
        let (sender, loaded) = oneshot::channel();
        let spawned = thread::Builder::new().name("plugin-loader".to_owned()).spawn(move || {
            // Held until it is done, also when nobody waits for it any more.
            let _permit = permit;
            _ = sender.send(load(&runtime, &spec.name.to_string(), &spec));
        });
        if let Err(error) = spawned {
            let reason = format!("no thread to load it: {error}");
            return Err(Failure { reason, lasting: false });
        }
        match loaded.await {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => {
                let lasting = self.is_lasting(&error);
                // The compiler draws pictures.
                let error = error.to_string();
                let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
                // As in versions: enough to tell it from others, and short enough for a status.
                let sha256 = super::store::hex(&digest);
                let reason = format!("the module {sha256:.12} cannot be used: {error}");
                Err(Failure { reason, lasting })
            }
            // The thread broke, and said in the log why.
            Err(_) => Err(Failure { reason: "loading it broke off".to_owned(), lasting: true }),
        }
    }

    /// Whether a module that cannot be used will be the same the next time. Starting may have been too slow, and a tag
    /// may lead to another image.
    fn is_lasting(&self, error: &LoadError) -> bool {
        let moves = matches!(&self.spec.source, Source::Oci(image) if image.digest.is_none());
        let pinned = self.spec.sha256.is_some() || !moves;
        pinned && !matches!(error, LoadError::Start { .. })
    }

    /// Waits until there is a reason to try again; false when there will be none.
    async fn wait(&self, stamp: Option<Stamp>, retry: Option<Duration>) -> bool {
        if stamp.is_none() && retry.is_none() {
            return false;
        }
        let changed = async {
            let Some(before) = stamp else { return std::future::pending().await };
            loop {
                sleep(POLL).await;
                if module::stamp(&self.spec).await != Some(before) {
                    return;
                }
            }
        };
        let due = async {
            match retry {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = due => {}
        }
        true
    }
}

/// How long to wait after `failures` failures before. `random` is in 0..1: half of it is by chance, so that the proxies
/// of a mesh do not all ask at once.
fn backoff(failures: u32, random: f64) -> Duration {
    let whole = FIRST_BACKOFF.saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute() {
        let waits =
            |random| [0, 1, 2, 6, 7, 40].map(|failures| backoff(failures, random).as_millis());
        assert_eq!(waits(1.0), [500, 1000, 2000, 32_000, 60_000, 60_000]);
        assert_eq!(waits(0.0), [250, 500, 1000, 16_000, 30_000, 30_000]);
    }
}
