//! Orders, streams and those who wait, without a network.

use super::*;

fn holder(name: &str, instance: u64) -> Holder {
    Holder { member: name.into(), instance }
}

fn scope(names: &[&str]) -> BTreeSet<Member> {
    names.iter().map(|name| Member::from(*name)).collect()
}

fn tag(tag: &str) -> Purge {
    Purge { service: "shop/a".into(), what: What::Tag(tag.into()) }
}

/// The number of the next order, which must be there; `true`: everything.
async fn next(subscriber: &mut Subscriber) -> (u64, bool) {
    let order = tokio::time::timeout(Duration::from_secs(60), subscriber.next()).await.unwrap();
    (order.position.sequence, order.purge.is_none())
}

/// Opens a stream that has caught up.
async fn current(purges: &Arc<Purges>, name: &str) -> Subscriber {
    let mut subscriber = purges.open(holder(name, 1), None);
    let (sequence, everything) = next(&mut subscriber).await;
    assert!(everything);
    subscriber.report(sequence, 0).unwrap();
    subscriber
}

fn outcome(proxies: usize, confirmed: usize, removed: u64, waiting: &[&str]) -> Outcome {
    let waiting = waiting.iter().map(ToString::to_string).collect();
    Outcome { proxies, confirmed, removed, waiting }
}

#[tokio::test]
async fn whoever_orders_hears_what_everybody_in_scope_has_done() {
    let purges = Purges::new();
    let (mut a, mut b) = (current(&purges, "a").await, current(&purges, "b").await);
    let mut elsewhere = current(&purges, "c").await;
    assert_eq!(purges.streams(), 3);
    let ticket = purges.order(tag("x"), &scope(&["a", "b", "without-caches"]));
    assert_eq!(ticket.outcome(), outcome(2, 0, 0, &["a", "b"]));
    for (subscriber, removed) in [(&mut elsewhere, 100), (&mut a, 3)] {
        assert_eq!(next(subscriber).await, (1, false));
        subscriber.report(1, removed).unwrap();
    }
    assert_eq!(ticket.confirmed(Duration::ZERO).await, outcome(2, 1, 3, &["b"]));
    assert_eq!(next(&mut b).await, (1, false));
    b.report(1, 4).unwrap();
    assert_eq!(ticket.confirmed(Duration::from_secs(60)).await, outcome(2, 2, 7, &[]));
    drop(ticket);
    assert!(purges.state().waits.is_empty());
}

#[tokio::test]
async fn with_nobody_to_wait_for_it_is_done_at_once() {
    let purges = Purges::new();
    let done = purges.order(tag("x"), &scope(&["a"])).confirmed(Duration::from_secs(60)).await;
    assert_eq!(done, outcome(0, 0, 0, &[]));
}

#[tokio::test]
async fn a_broken_stream_is_waited_for_and_catches_up() {
    let purges = Purges::new();
    let a = current(&purges, "a").await;
    let position = Position { epoch: purges.epoch, sequence: 0 };
    drop(a);
    let first = purges.order(tag("x"), &scope(&["a"]));
    let second = purges.order(tag("y"), &scope(&["a"]));
    assert_eq!(second.outcome(), outcome(1, 0, 0, &["a"]));
    let mut back = purges.open(holder("a", 1), Some(position));
    assert_eq!(next(&mut back).await, (1, false));
    back.report(1, 5).unwrap();
    assert_eq!(next(&mut back).await, (2, false));
    assert_eq!(first.confirmed(Duration::from_secs(60)).await, outcome(1, 1, 5, &[]));
    // It has done it, but broke off before it could say so.
    drop(back);
    assert_eq!(second.outcome(), outcome(1, 0, 0, &["a"]));
    let position = Position { sequence: 2, ..position };
    let back = purges.open(holder("a", 1), Some(position));
    assert_eq!(second.confirmed(Duration::from_secs(60)).await, outcome(1, 1, 0, &[]));
    back.finish();
    assert_eq!(purges.order(tag("z"), &scope(&["a"])).outcome(), outcome(0, 0, 0, &[]));
}

#[tokio::test]
async fn what_cannot_be_known_is_everything() {
    let purges = Purges::new();
    let ticket = purges.order(tag("x"), &scope(&[]));
    let head = Position { epoch: purges.epoch, sequence: 1 };
    let elsewhere = Position { epoch: purges.epoch.wrapping_add(1), ..head };
    for position in [None, Some(elsewhere), Some(Position { sequence: 2, ..head })] {
        let mut subscriber = purges.open(holder("a", 1), position);
        assert_eq!(next(&mut subscriber).await, (1, true), "{position:?}");
    }
    let mut subscriber = purges.open(holder("a", 1), Some(head));
    let waiting = tokio::time::timeout(Duration::from_millis(20), subscriber.next()).await;
    assert!(waiting.is_err(), "it is up to date");
    drop(ticket);
}

#[tokio::test]
async fn forgetting_everything_confirms_all_that_was_missed() {
    let purges = Purges::new();
    drop(current(&purges, "a").await);
    let missed = purges.order(tag("x"), &scope(&["a"]));
    let last = purges.order(tag("y"), &scope(&["a"]));
    let mut back = purges.open(holder("a", 2), None);
    assert_eq!(next(&mut back).await, (2, true));
    back.report(2, 9).unwrap();
    // Another process than the one that is waited for: that one is gone, and so are its caches, but nobody knows.
    assert_eq!(missed.outcome(), outcome(1, 0, 0, &["a"]));
    let mut back = purges.open(holder("a", 1), None);
    assert_eq!(next(&mut back).await, (2, true));
    back.report(2, 9).unwrap();
    assert_eq!(missed.confirmed(Duration::from_secs(60)).await, outcome(1, 1, 0, &[]));
    assert_eq!(last.confirmed(Duration::from_secs(60)).await, outcome(1, 1, 9, &[]));
}

#[tokio::test]
async fn nobody_confirms_what_it_was_not_told_or_twice() {
    let purges = Purges::new();
    let mut a = purges.open(holder("a", 1), None);
    assert!(a.report(0, 1).is_err(), "not told yet");
    assert_eq!(next(&mut a).await, (0, true));
    a.report(0, 1).unwrap();
    assert!(a.report(0, 1).is_err(), "twice");
    let ticket = purges.order(tag("x"), &scope(&["a"]));
    assert!(a.report(1, 1).is_err(), "ordered, but not told");
    assert_eq!(next(&mut a).await, (1, false));
    a.report(1, 1).unwrap();
    assert!(a.report(1, 1).is_err());
    assert!(a.report(u64::MAX, 1).is_err());
    assert_eq!(ticket.outcome(), outcome(1, 1, 1, &[]));
}
