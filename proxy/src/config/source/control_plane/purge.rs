//! What our caches are to forget: heard from the control plane, carried out and confirmed, as long as there are caches.
//!
//! Whoever was away hears what it missed; where that is not known any more it forgets everything. A proxy that cannot reach the
//! control plane goes on answering from what it has.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use leno_api::{model::ObjectName, wire::TOKEN_HEADER};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{Access, MAX_BACKOFF, backoff, stream};
use crate::{
    cache::{
        Cache,
        purge::{Purge, What},
    },
    snapshot::Published,
};
use proto::{
    FromProxy, Hello, Order, Position, Report, from_proxy::Message, order,
    purges_client::PurgesClient,
};

#[expect(clippy::allow_attributes_without_reason, reason = "generated")]
mod proto {
    tonic::include_proto!("leno.cache.v1");
}

/// How long the control plane may take to accept the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to hear that we have no caches any more.
const LAST_WORD: Duration = Duration::from_secs(10);
/// An order has one path and the name of a service.
const MAX_ORDER_BYTES: usize = 16 * 1024;
/// Messages handed to the transport before it has sent them.
const MESSAGES_AHEAD: usize = 4;

type Caches = BTreeMap<ObjectName, Arc<Cache>>;

/// Whom to listen to, and for whom.
#[derive(Debug)]
pub struct Options {
    /// `127.0.0.1:15012`, or a name with a port.
    pub address: String,
    /// How it is spoken to.
    pub access: Access,
    /// What people know the proxy by.
    pub proxy: String,
}

/// Listens for ever. While there are no caches nobody is connected to.
pub async fn run(options: Options, published: Arc<Published>) {
    let mut generations = published.subscribe();
    let mut listener = Listener {
        options,
        published,
        instance: rand::random(),
        position: None,
        is_connected: None,
    };
    let mut failures = 0;
    loop {
        generations.mark_unchanged();
        if listener.caches().is_empty() {
            if generations.changed().await.is_err() {
                return;
            }
            continue;
        }
        let began = Instant::now();
        match listener.follow(&mut generations).await {
            Ended::Idle => failures = 0,
            Ended::Over => return,
            Ended::Broken(reason) => {
                listener.note(Some(&reason));
                // A control plane that takes us in and throws us out again is not well.
                failures = if began.elapsed() > MAX_BACKOFF { 0 } else { failures };
                tokio::time::sleep(backoff(failures, rand::random())).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Why a stream ended.
enum Ended {
    /// There are no caches any more.
    Idle,
    /// Nobody tells of changes any more: the proxy is ending.
    Over,
    Broken(String),
}

struct Listener {
    options: Options,
    published: Arc<Published>,
    /// Tells us from others of our name.
    instance: u64,
    /// The last order that was carried out, as the control plane numbers them. What is given while there are no caches is heard
    /// once there are some again: then nobody needs to know when they came.
    position: Option<Position>,
    /// `None` before the first attempt.
    is_connected: Option<bool>,
}

/// Both halves of one stream.
struct Opened {
    messages: mpsc::Sender<FromProxy>,
    orders: Streaming<Order>,
}

impl Listener {
    fn caches(&self) -> Arc<Caches> {
        self.published.load().caches.clone()
    }

    /// One stream, from its first message to its end.
    async fn follow(&mut self, generations: &mut watch::Receiver<u64>) -> Ended {
        let Opened { messages, mut orders } = match self.open().await {
            Ok(opened) => opened,
            Err(reason) => return Ended::Broken(reason),
        };
        self.note(None);
        loop {
            tokio::select! {
                order = orders.message() => {
                    let report = match order {
                        Ok(Some(order)) => self.obey(order).await,
                        Ok(None) => Err("the control plane ended the stream".to_owned()),
                        Err(status) => Err(stream::explain(&status)),
                    };
                    let report = match report {
                        Ok(report) => FromProxy { message: Some(Message::Report(report)) },
                        Err(reason) => return Ended::Broken(reason),
                    };
                    if messages.send(report).await.is_err() {
                        return Ended::Broken("the connection broke".to_owned());
                    }
                }
                changed = generations.changed() => {
                    if changed.is_err() {
                        return Ended::Over;
                    }
                    if self.caches().is_empty() {
                        take_leave(messages, orders).await;
                        return Ended::Idle;
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<Opened, String> {
        let channel = stream::connect(&self.options.address, &self.options.access).await?;
        let mut client = PurgesClient::new(channel).max_decoding_message_size(MAX_ORDER_BYTES);
        let (messages, queue) = mpsc::channel(MESSAGES_AHEAD);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Access::Plain { token_file: Some(file) } = &self.options.access {
            request.metadata_mut().insert(TOKEN_HEADER, stream::token(file)?);
        }
        let hello = Hello {
            proxy: self.options.proxy.clone(),
            instance: self.instance,
            position: self.position,
        };
        // There is room for the first one.
        let hello = messages.try_send(FromProxy { message: Some(Message::Hello(hello)) });
        hello.map_err(|error| error.to_string())?;
        let opened = timeout(OPEN_TIMEOUT, client.follow(request)).await;
        let opened = opened.map_err(|_| format!("no answer within {OPEN_TIMEOUT:?}"))?;
        let orders = opened.map_err(|status| stream::explain(&status))?.into_inner();
        Ok(Opened { messages, orders })
    }

    /// Carries out an order. Beside everything else: to look through a large cache takes a while.
    async fn obey(&mut self, order: Order) -> Result<Report, String> {
        let position =
            order.position.ok_or("the control plane sent an order without a position")?;
        let (caches, purge) = (self.caches(), purge_of(order));
        tracing::debug!(service = purge.service.as_deref(), what = ?purge.what, "purging");
        // Who has just begun forgets what it may have missed, and does not make others forget it.
        let everything = purge.service.is_none() && purge.what == What::All;
        let first = self.position.is_none() && everything;
        let purging = move || {
            let of = |cache: &Arc<Cache>| match first {
                true => cache.purge_here(&purge),
                false => cache.purge(&purge),
            };
            caches.values().map(of).sum()
        };
        let removed = tokio::task::spawn_blocking(purging).await;
        let removed = removed.map_err(|error| format!("a purge failed: {error}"))?;
        self.position = Some(position);
        Ok(Report { sequence: position.sequence, removed })
    }

    /// Says so when that changes.
    fn note(&mut self, failure: Option<&str>) {
        match failure {
            Some(reason) if self.is_connected != Some(false) => tracing::warn!(
                "no purges are heard of ({reason}): going on with what is kept, and trying again"
            ),
            None if self.is_connected == Some(false) => {
                tracing::info!("purges are heard of again, also those that were missed");
            }
            _ => {}
        }
        self.is_connected = Some(failure.is_none());
    }
}

/// Closes our half and waits until the control plane has closed the other: it would expect us back otherwise.
async fn take_leave(messages: mpsc::Sender<FromProxy>, mut orders: Streaming<Order>) {
    drop(messages);
    let ended = async { while let Ok(Some(_)) = orders.message().await {} };
    // Without an answer it expects us back in vain, and tells people so.
    let _ = timeout(LAST_WORD, ended).await;
}

fn purge_of(order: Order) -> Purge {
    let what = match order.what {
        Some(order::What::Path(path)) => What::Path(path),
        Some(order::What::Prefix(prefix)) => What::Prefix(prefix),
        Some(order::What::Tag(tag)) => What::Tag(tag),
        // What a newer control plane knows and we do not may be anything.
        Some(order::What::All(_)) | None => What::All,
    };
    let service = (!order.service.is_empty()).then(|| order.service.into());
    Purge { service, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_everything() {
        let order = |service: &str, what| {
            let purge = purge_of(Order { position: None, service: service.to_owned(), what });
            (purge.service.map(|service| service.to_string()), purge.what)
        };
        let (all, none) = (Some(order::What::All(true)), || None::<String>);
        assert_eq!(order("", all.clone()), (none(), What::All));
        assert_eq!(order("shop/a:80", all), (Some("shop/a:80".into()), What::All));
        assert_eq!(order("shop/a", None), (Some("shop/a".into()), What::All));
        let tag = Some(order::What::Tag("x".into()));
        assert_eq!(order("shop/a", tag), (Some("shop/a".into()), What::Tag("x".into())));
        let path = Some(order::What::Path("/x?y".into()));
        assert_eq!(order("shop/a", path).1, What::Path("/x?y".into()));
        let prefix = Some(order::What::Prefix("/x".into()));
        assert_eq!(order("shop/a", prefix).1, What::Prefix("/x".into()));
    }
}
