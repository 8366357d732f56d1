//! Leno in Kubernetes as far as it goes without nodes: a real `kube-apiserver` with its `etcd`, from the folder that
//! `KUBEBUILDER_ASSETS` names (as `setup-envtest` fills it), and what people do there with `kubectl`. Skipped where the variable
//! is not set.
//!
//! - [`api_server`]: the API server; [`program`]: control planes, sidecars, applications
//! - [`story`]: what happens there, from `leno install` to `leno uninstall`
//!
//! One story, since an API server takes half a gigabyte and many seconds to start.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod api_server;
mod program;
mod story;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Longer than anything takes on a busy machine; reaching it is a failure, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(100));
    }
}
