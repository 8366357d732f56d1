//! How plugins become live: later than what came with them, and each for itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use leno_api::{
    Key,
    model::{Model, wasm_plugin::WasmPlugin},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::Applier;
use crate::config::{
    inputs::Dirty,
    prepare::{Done, Outcome, Written},
};

/// The source waits at most so long for what became of plugins. Whatever comes later it is told later.
const PATIENCE: Duration = Duration::from_secs(10);
/// A plugin that fails in turns in different words is told in other words once in so long: each time the source sends it
/// anew.
pub(super) const REWORD_EVERY: Duration = Duration::from_secs(300);
/// Versions on trial are looked at this often.
pub(super) const JUDGE_EVERY: Duration = Duration::from_millis(250);

/// What the source is told about a change, once it is known of all its plugins.
#[derive(Debug)]
pub(super) struct Held {
    live: oneshot::Sender<Vec<(Key, String)>>,
    refused: Vec<(Key, String)>,
    waiting: BTreeSet<Key>,
    pub(super) until: Instant,
}

impl Applier {
    /// Whom to tell that something else has become of a plugin than what was said before.
    pub fn tell_again(&mut self, again: mpsc::Sender<Key>) {
        self.again = Some(again);
    }

    /// Takes up a plugin, and gives back what of it is in force at once.
    pub(super) fn offer(&mut self, spec: &Arc<WasmPlugin>, written: Written) -> Option<Written> {
        self.unsaved_since.get_or_insert_with(Instant::now);
        let key = written.0.key();
        let at_once = self.preparer.offer(spec, written);
        // Known already where it was offered in the same words before.
        if let Some(Err(reason)) = self.preparer.verdict(&key.name) {
            self.rejected.insert(key.to_string(), reason);
        }
        at_once
    }

    /// Answers the source: at once, or when it is known what became of the plugins of the change.
    pub(super) fn answer(
        &mut self,
        live: oneshot::Sender<Vec<(Key, String)>>,
        refused: Vec<(Key, String)>,
        plugins: Vec<Key>,
    ) {
        let until = Instant::now() + PATIENCE;
        let mut held = Held { live, refused, waiting: plugins.into_iter().collect(), until };
        self.settle(&mut held);
        if held.waiting.is_empty() {
            held.send();
        } else {
            self.held = Some(held);
        }
    }

    /// Answers what waits for plugins without waiting any longer: something else is to be said, or it took too long.
    pub(super) fn release(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        self.settle(&mut held);
        for key in std::mem::take(&mut held.waiting) {
            let reason = "not loaded yet: it is being fetched and compiled".to_owned();
            self.told.insert(key.name.clone(), Err(reason.clone()));
            held.refused.push((key, reason));
        }
        held.send();
    }

    /// Takes up what a task says of a plugin.
    pub(super) fn prepared(&mut self, done: Done) {
        if let Some(outcome) = self.preparer.take(done, self.started.elapsed()) {
            self.follow(vec![outcome]);
        }
    }

    /// Decides on versions on trial.
    pub(super) fn judge(&mut self) {
        let outcomes = self.preparer.judge(self.started.elapsed());
        if !outcomes.is_empty() {
            self.follow(outcomes);
        }
    }

    fn follow(&mut self, outcomes: Vec<Outcome>) {
        let mut dirty = Dirty::default();
        let mut keys = Vec::new();
        for Outcome { name, insert } in outcomes {
            let Some(kind) = leno_api::KINDS.iter().find(|kind| kind.kind == "WasmPlugin") else {
                continue;
            };
            let key = Key { kind, name };
            if let Some((resource, json)) = insert {
                self.inputs.insert(resource, json, &mut dirty);
            }
            self.inputs.touch_plugin(&key.name, &mut dirty);
            match self.preparer.verdict(&key.name) {
                Some(Err(reason)) => _ = self.rejected.insert(key.to_string(), reason),
                _ => _ = self.rejected.remove(&key.to_string()),
            }
            keys.push(key);
        }
        self.count_rejected();
        if dirty.is_empty() {
            self.unsaved_since.get_or_insert_with(Instant::now);
        } else {
            self.publish(&mut dirty);
        }
        self.report(keys);
    }

    /// Tells the source what has become of plugins: with the change that they came with, or later.
    fn report(&mut self, keys: Vec<Key>) {
        if let Some(mut held) = self.held.take() {
            self.settle(&mut held);
            if held.waiting.is_empty() {
                held.send();
            } else {
                self.held = Some(held);
            }
        }
        for key in keys {
            let verdict = self.preparer.verdict(&key.name);
            if let (Some(again), Some(told)) = (&self.again, self.told.get(&key.name))
                && let Some(verdict) = verdict
                && self.is_news(&key, told, &verdict)
                // Full: the source is far behind. It says so with the next change of this plugin.
                && again.try_send(key.clone()).is_ok()
            {
                match (self.told.remove(&key.name), verdict) {
                    (Some(Err(_)), Err(_)) => _ = self.reworded.insert(key.name, Instant::now()),
                    _ => _ = self.reworded.remove(&key.name),
                }
            }
        }
    }

    /// Whether the source has to hear of it now.
    pub(super) fn is_news(
        &self,
        key: &Key,
        told: &Result<(), String>,
        verdict: &Result<(), String>,
    ) -> bool {
        let due = |at: &Instant| at.elapsed() >= REWORD_EVERY;
        match (told, verdict) {
            (Err(told), Err(reason)) => {
                told != reason && self.reworded.get(&key.name).is_none_or(due)
            }
            _ => told != verdict,
        }
    }

    fn settle(&mut self, held: &mut Held) {
        held.waiting.retain(|key| {
            let Some(verdict) = self.preparer.verdict(&key.name) else { return true };
            self.told.insert(key.name.clone(), verdict.clone());
            if let Err(reason) = verdict {
                held.refused.push((key.clone(), reason));
            }
            false
        });
    }
}

impl Held {
    fn send(self) {
        // A source that has ended does not wait for the answer.
        let _ = self.live.send(self.refused);
    }
}

/// The plugin of a resource, where it is one.
pub(super) fn plugin(model: &Model) -> Option<&Arc<WasmPlugin>> {
    match model {
        Model::WasmPlugin(plugin) => Some(plugin),
        _ => None,
    }
}
