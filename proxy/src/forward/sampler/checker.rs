//! Makes the health checks that are due.

use std::{cell::RefCell, fmt, rc::Rc, sync::Arc};

use leno_api::model::traffic_policy::HealthCheck;
use tokio::sync::Semaphore;

use crate::{
    cluster::{
        Cluster, Endpoint,
        connect::Connector,
        probe::{Failure, probe},
    },
    forward::worker::Shared,
};

/// Checks under way at once: with the default interval of 5 s and answers within 50 ms, 6,400 endpoints.
const AT_ONCE: usize = 64;

/// A check to be made.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) check: HealthCheck,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Answer {
    /// By [`State::id`](crate::cluster::State::id).
    pub(super) cluster: u64,
    /// By [`Vitals::id`](crate::cluster::vitals::Vitals::id).
    pub(super) endpoint: u64,
    /// Whether the endpoint is well.
    pub(super) answer: Result<(), Failure>,
}

/// Of one side thread.
pub(super) struct Checker {
    connector: Rc<Connector>,
    permits: Rc<Semaphore>,
    answers: Rc<RefCell<Vec<Answer>>>,
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").finish_non_exhaustive()
    }
}

impl Checker {
    pub(super) fn new(shared: &Shared) -> Self {
        let identity = shared.identity.clone();
        let connector = Connector::new(move || identity.current(), shared.families.clone());
        Self {
            connector: connector.into(),
            permits: Semaphore::new(AT_ONCE).into(),
            answers: Rc::default(),
        }
    }

    /// Asks in a task of its own. Nobody is asked twice at once, so that there are no more tasks than endpoints.
    pub(super) fn ask(&self, asked: Asked) {
        let (connector, permits) = (self.connector.clone(), self.permits.clone());
        let answers = self.answers.clone();
        tokio::task::spawn_local(async move {
            // It is never closed.
            let _permit = permits.acquire().await;
            let Asked { cluster, endpoint, check } = asked;
            let answer = probe(&connector, &cluster, &endpoint, &check).await;
            let (cluster, endpoint) = (cluster.state.id, endpoint.vitals().id);
            answers.borrow_mut().push(Answer { cluster, endpoint, answer });
        });
    }

    /// What came back since the last call.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.borrow_mut())
    }
}
