//! What instances and plugins have in common: data, queues, metrics. Each is bounded, and each can be
//! common to as many plugins as the embedder likes.

pub use self::{
    data::{DataLimits, SharedData},
    metrics::{Histogram, Metric, MetricValue, Metrics},
    queues::{QueueLimits, SharedQueues},
};

mod data;
mod metrics;
mod queues;

/// The three together, as a plugin gets them. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// Data with compare-and-swap.
    pub data: SharedData,
    /// Queues between plugins.
    pub queues: SharedQueues,
    /// Metrics that plugins define.
    pub metrics: Metrics,
}
