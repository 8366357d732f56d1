//! Several attempts at once: when an answer is late, another endpoint is asked, and the first good answer counts.

use std::{
    future::poll_fn,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant as Moment},
};

use leno_api::model::traffic_policy::HedgeAfter;
use tokio::time::{Instant, sleep};

use super::{
    Heard, Tries,
    discard::discard,
    judge, note_endpoint, number,
    send::{Context, Sent, attempt},
    supply::Outgoing,
};
use crate::{
    cluster::Lease,
    forward::{allowance::Granted, exchange::Exchange, retry::Reason},
};

/// When, and how many more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    after: Duration,
    more: u32,
}

/// How an attempt went.
pub(super) struct Tried {
    pub(super) lease: Lease,
    pub(super) result: Sent,
    /// What can be sent again.
    pub(super) kept: Option<Outgoing>,
    pub(super) reader: u32,
}

/// An attempt under way; given up when dropped.
struct Racer<'a> {
    attempt: Pin<Box<dyn Future<Output = Tried> + 'a>>,
    begun: Instant,
    /// `None` of the first one.
    granted: Option<Granted>,
}

enum Event {
    /// The one at this place is over.
    Over(usize, Box<Tried>),
    /// It is time for another.
    Due,
}

impl Plan {
    /// What the service's policy says of a request that may be sent twice.
    pub(super) fn of(context: &Context<'_>) -> Option<Self> {
        let (worker, cluster) = (&context.worker, context.cluster);
        let hedging = cluster.settings.hedging?;
        let after = match hedging.after {
            HedgeAfter::Delay(after) => after,
            HedgeAfter::P95 => worker.allowances.usual(cluster, worker.shared.workers)?,
        };
        Some(Self { after, more: hedging.attempts })
    }
}

/// Sends `outgoing` to the leased endpoint, and to others when that takes long. The first answer that the policy would
/// not have tried again counts; where there is none, the last failure does.
pub(super) async fn race<'a>(
    tries: &mut Tries<'a>,
    exchange: &mut Exchange,
    plan: Plan,
    lease: Lease,
    outgoing: Outgoing,
) -> Tried {
    let Plan { after, mut more } = plan;
    let copy = outgoing.copy();
    let (mut endpoints, mut hedged) = (vec![lease.endpoint.id], false);
    let mut racers = vec![Racer::start(&tries.context, lease, outgoing, None)];
    let mut due = Box::pin(sleep(after));
    loop {
        match next(&mut racers, (more > 0).then_some(due.as_mut())).await {
            Event::Over(at, tried) => {
                let (racer, tried) = (racers.swap_remove(at), *tried);
                let good = is_good(tries, &tried);
                if !good && !racers.is_empty() {
                    lose(tries, tried);
                    continue;
                }
                if hedged {
                    let result = match (good, &racer.granted) {
                        (false, _) => "failed",
                        (true, Some(_)) => "won",
                        (true, None) => "lost",
                    };
                    count(tries, result);
                }
                give_up(tries, &racers);
                note_endpoint(exchange, &tried.lease);
                return Tried { kept: tried.kept.or(copy), ..tried };
            }
            Event::Due => {
                more -= 1;
                due.as_mut().reset(Instant::now() + after);
                let another = copy
                    .as_ref()
                    .and_then(Outgoing::copy)
                    .map(|copy| another(tries, exchange, &mut endpoints, copy));
                match another {
                    Some(Ok(racer)) => {
                        hedged = true;
                        racers.push(racer);
                    }
                    Some(Err(Some(reason))) => {
                        more = 0;
                        tries.deny(exchange, reason);
                        count(tries, "denied");
                    }
                    Some(Err(None)) | None => more = 0,
                }
            }
        }
    }
}

/// Begins one more attempt.
///
/// # Errors
/// Why there may not be one, where that is worth telling.
fn another<'a>(
    tries: &mut Tries<'a>,
    exchange: &mut Exchange,
    endpoints: &mut Vec<u64>,
    copy: Outgoing,
) -> Result<Racer<'a>, Option<Reason>> {
    // While the body is still coming the caller is the slow one.
    if !tries.supply.is_complete() {
        return Err(None);
    }
    let cluster = tries.context.cluster;
    let lease = tries.context.lease(endpoints, Moment::now()).map_err(|_| None)?;
    if endpoints.contains(&lease.endpoint.id) {
        // The same once more would be as slow.
        return Err(None);
    }
    let granted = Granted::take(&tries.context.worker, cluster, true).map_err(Some)?;
    let mut outgoing = tries.supply.with_body(copy).ok_or(None)?;
    endpoints.push(lease.endpoint.id);
    number(&mut outgoing.request, tries.made, tries.context.outbound);
    tries.made += 1;
    exchange.note(|record| record.attempts += 1);
    Ok(Racer::start(&tries.context, lease, outgoing, Some(granted)))
}

impl<'a> Racer<'a> {
    fn start(
        context: &Context<'a>,
        lease: Lease,
        outgoing: Outgoing,
        granted: Option<Granted>,
    ) -> Self {
        let context = context.clone();
        let attempt = Box::pin(async move {
            let reader = outgoing.reader;
            let mut kept = Some(outgoing);
            let result = attempt(&context, &lease, &mut kept).await;
            Tried { lease, result, kept, reader }
        });
        Self { attempt, begun: Instant::now(), granted }
    }
}

async fn next(racers: &mut [Racer<'_>], due: Option<Pin<&mut tokio::time::Sleep>>) -> Event {
    let mut due = due;
    poll_fn(|context| {
        for (at, racer) in racers.iter_mut().enumerate() {
            if let Poll::Ready(tried) = racer.attempt.as_mut().poll(context) {
                return Poll::Ready(Event::Over(at, Box::new(tried)));
            }
        }
        match &mut due {
            Some(due) => due.as_mut().poll(context).map(|()| Event::Due),
            None => Poll::Pending,
        }
    })
    .await
}

fn is_good(tries: &Tries<'_>, tried: &Tried) -> bool {
    let heard = Heard::of(&tried.result);
    tried.result.is_ok()
        && heard.failure.is_none_or(|failure| !tries.context.policy.names(&failure))
}

/// An attempt that failed while others are under way.
fn lose(tries: &mut Tries<'_>, tried: Tried) {
    tries.tried.push(tried.lease.endpoint.id);
    let heard = Heard::of(&tried.result);
    let _judged = judge(&tries.context, &tried.lease, &tried.result, heard, Moment::now());
    let sent = tries.is_sent(tried.reader);
    if let Ok((response, connection)) = tried.result {
        discard(response, connection, tries.context.cluster.cluster(), sent);
    }
}

/// Those that are still under way took at least so long; they are cancelled as they are dropped, and nothing is said
/// against their endpoints.
fn give_up(tries: &Tries<'_>, racers: &[Racer<'_>]) {
    for racer in racers {
        tries.answered_after(racer.begun.elapsed());
    }
}

fn count(tries: &Tries<'_>, result: &str) {
    let cluster = tries.context.cluster;
    let hedges = &tries.context.worker.shared.families.resilience.retries.hedges;
    hedges.with_label_values(&[&*cluster.name, result]).inc();
}
