//! The task behind the registry: follows the store, and deletes what has lapsed.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep, sleep_until};

use super::{GROUP, PLURAL, Registry, lease::Heartbeat, now};
use crate::store::{Batch, Change, Error, Expect, Key, Selection, Watch};

/// How many lapsed workloads are deleted at the same time; the store groups them into one write.
const DELETIONS: usize = 64;
/// How long to wait after the disk refused a deletion.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(registry: &Registry) {
    let selection = Selection::kind(GROUP, PLURAL);
    let mut from = registry.known;
    loop {
        let ended = match registry.store.watch(from, selection.clone()) {
            Ok(watch) => follow(registry, watch).await,
            Err(error) => error,
        };
        if matches!(ended, Error::Closed) {
            return;
        }
        tracing::warn!(%ended, "the registry lost track of the store and reads all workloads again");
        sleep(RETRY).await;
        from = read_again(registry, &selection);
    }
}

/// Until the watch ends; why it did.
async fn follow(registry: &Registry, mut watch: Watch) -> Error {
    let mut heartbeat = Heartbeat::new(now());
    loop {
        let beat = heartbeat.next();
        let wake = registry.leases().next_end().map_or(beat, |end| end.min(beat));
        tokio::select! {
            batch = watch.next() => match batch {
                Ok(batch) => observe(registry, &batch),
                Err(error) => return error,
            },
            () = registry.changed.notified() => {}
            () = sleep_until(Instant::from_std(wake)) => {}
        }
        let stalled = heartbeat.beat(now());
        if !stalled.is_zero() {
            tracing::warn!(
                ?stalled,
                "this process did not run for a while; every lease is extended by that"
            );
            registry.leases().extend_all(stalled);
        }
        delete_lapsed(registry).await;
    }
}

fn observe(registry: &Registry, batch: &Batch) {
    for event in &batch.events {
        match event.change {
            Change::Created | Change::Updated => registry.observe(&event.object),
            Change::Deleted => release(registry, &event.object.key),
            // Written by the control plane about the workload: no sign of life.
            Change::StatusWritten => {}
        }
    }
}

/// Its object was deleted; unless it has been written again since, of which another event tells.
fn release(registry: &Registry, key: &Key) {
    if registry.store.get(key).is_none() {
        registry.leases().release(key);
    }
}

/// After the history ran out: leases of objects that are gone end, new objects get theirs.
fn read_again(registry: &Registry, selection: &Selection) -> u64 {
    let listing = registry.store.list(selection);
    let known: Vec<Key> = registry.leases().keys().cloned().collect();
    known.iter().for_each(|key| release(registry, key));
    for stored in listing.items.iter().filter(|stored| !known.contains(&stored.key)) {
        registry.observe(stored);
    }
    listing.revision
}

async fn delete_lapsed(registry: &Registry) {
    let lapsed = registry.leases().lapse(now());
    stream::iter(lapsed).for_each_concurrent(DELETIONS, |key| delete(registry, key)).await;
}

async fn delete(registry: &Registry, key: Key) {
    loop {
        // Granted anew meanwhile: it lives.
        let Some(content) = registry.leases().lapsing_content(&key) else { return };
        let Some(stored) = registry.store.get(&key) else {
            return registry.leases().release(&key);
        };
        if stored.content > content {
            // Written again after the lease that lapsed had been granted.
            return registry.observe(&stored);
        }
        match registry.store.delete(key.clone(), Expect::Exactly(stored.modified)).await {
            Ok(_) => {
                tracing::info!(workload = %key, "its lease lapsed, it was removed");
                return registry.leases().release(&key);
            }
            // Somebody wrote it, perhaps only its status: look again.
            Err(Error::Conflict { .. }) => {}
            Err(error) => {
                tracing::error!(workload = %key, %error, "its lease lapsed but it cannot be removed");
                return registry.grant(&key, RETRY, content);
            }
        }
    }
}
