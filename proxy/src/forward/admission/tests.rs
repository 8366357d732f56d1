use std::pin::pin;

use bytes::Bytes;
use http::HeaderMap;
use leno_api::model::{
    matching::HeaderCondition,
    traffic_policy::{HealthCheck, Priority as Entry, Queue},
};

use super::*;
use crate::http::body::Watch;

const PATIENT: Duration = Duration::from_secs(60);

fn door(limit: u32) -> Rc<Door> {
    let seat = Arc::new(Seat::default());
    seat.limit.store(limit, Ordering::Relaxed);
    Rc::new(Door {
        state: Weak::new(),
        gate: RefCell::new(Gate::new(limit)),
        seat,
        waiting: RefCell::default(),
        attended: Cell::new(false),
        started: Instant::now(),
    })
}

fn settings(interval: Duration) -> AdaptiveConcurrency {
    AdaptiveConcurrency {
        queue: Queue { length: 100, target: interval, interval },
        ..AdaptiveConcurrency::default()
    }
}

async fn place(door: &Rc<Door>, priority: Priority) -> Option<Place> {
    let came_in = door.arrive(&settings(PATIENT), priority).await;
    let since = Instant::now();
    came_in.then(|| Place { door: door.clone(), since, progress: None, counts: true })
}

/// Polls once.
async fn begun<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = std::future::ready(()) => None,
    }
}

fn waiting(door: &Door) -> (u32, u32) {
    (door.seat.running.load(Ordering::Relaxed), door.seat.waiting.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "local")]
async fn a_place_that_becomes_free_is_for_who_matters_most() {
    let door = door(3);
    let mut places = Vec::new();
    for _ in 0..3 {
        places.push(place(&door, Priority::Critical).await.unwrap());
    }
    let mut normal = pin!(place(&door, Priority::Normal));
    let mut critical = pin!(place(&door, Priority::Critical));
    assert!(begun(&mut normal).await.is_none() && begun(&mut critical).await.is_none());
    assert_eq!(waiting(&door), (3, 2));
    places.pop();
    assert!(begun(&mut normal).await.is_none());
    let critical = begun(&mut critical).await.unwrap().unwrap();
    assert_eq!(waiting(&door), (3, 1));
    drop(places);
    assert!(begun(&mut normal).await.unwrap().is_some());
    drop(critical);
    assert_eq!(waiting(&door), (0, 0));
    assert_eq!(door.seat.waited.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "local")]
async fn who_goes_away_leaves_nothing_behind() {
    let door = door(3);
    let mut places = Vec::new();
    for _ in 0..3 {
        places.push(place(&door, Priority::Critical).await.unwrap());
    }
    // In the queue.
    {
        let mut gone = pin!(place(&door, Priority::Critical));
        assert!(begun(&mut gone).await.is_none());
    }
    assert_eq!(waiting(&door), (3, 0));
    assert!(door.waiting.borrow().is_empty());
    // In the moment in which it is its turn: the place goes on to the next.
    let mut next = pin!(place(&door, Priority::Critical));
    {
        let mut gone = pin!(place(&door, Priority::Critical));
        assert!(begun(&mut gone).await.is_none() && begun(&mut next).await.is_none());
        places.pop();
        assert_eq!(waiting(&door), (3, 1));
    }
    assert!(begun(&mut next).await.unwrap().is_some());
    drop(places);
    assert_eq!(waiting(&door), (0, 0));
}

#[tokio::test(flavor = "local")]
async fn nobody_waits_for_ever_and_nobody_where_nobody_may() {
    let door = door(3);
    let mut places = Vec::new();
    for _ in 0..3 {
        places.push(place(&door, Priority::Critical).await.unwrap());
    }
    let brief = Duration::from_millis(10);
    assert!(!door.arrive(&settings(brief), Priority::Normal).await);
    assert_eq!(waiting(&door), (3, 0));
    let none = AdaptiveConcurrency {
        queue: Queue { length: 0, ..Queue::default() },
        ..AdaptiveConcurrency::default()
    };
    let mut refused = pin!(door.arrive(&none, Priority::Normal));
    assert_eq!(begun(&mut refused).await, Some(false));
    // A larger share is found out about, though nobody leaves.
    let mut patient = pin!(place(&door, Priority::Normal));
    assert!(begun(&mut patient).await.is_none());
    door.seat.limit.store(10, Ordering::Relaxed);
    assert!(tokio::time::timeout(PATIENT, patient).await.unwrap().is_some());
}

#[tokio::test(flavor = "local")]
async fn who_gave_up_after_a_long_time_says_how_long_it_took() {
    for (unloaded, counts, counted) in
        [(1, true, 1), (u64::MAX, true, 0), (0, true, 0), (1, false, 0)]
    {
        let door = door(3);
        door.seat.unloaded.store(unloaded, Ordering::Relaxed);
        let mut place = place(&door, Priority::Normal).await.unwrap();
        place.counts = counts;
        place.since = Instant::now().checked_sub(Duration::from_millis(1)).unwrap();
        drop(place);
        assert_eq!(door.seat.answers.load(Ordering::Relaxed), counted, "{unloaded} {counts}");
        assert_eq!(door.seat.latency.load(Ordering::Relaxed) >= 1_000_000, counted == 1);
    }
}

/// Otherwise whoever sends deadlines that nobody can meet makes the application look quick, and its limit small.
#[tokio::test(flavor = "local")]
async fn a_deadline_says_nothing_about_how_quick_the_application_can_be() {
    let timed_out = outcome::timed_out(Duration::ZERO);
    for (unloaded, counted) in [(1, 1), (u64::MAX, 0), (0, 0)] {
        let door = door(3);
        door.seat.unloaded.store(unloaded, Ordering::Relaxed);
        place(&door, Priority::Normal).await.unwrap().ended(Err(&timed_out));
        assert_eq!(door.seat.answers.load(Ordering::Relaxed), counted, "{unloaded}");
        assert_eq!(waiting(&door), (0, 0));
    }
}

/// Nor does who sends slowly make it look slow.
#[tokio::test(flavor = "local")]
async fn the_time_that_a_caller_takes_to_send_is_not_the_applications() {
    let door = door(3);
    door.seat.unloaded.store(1, Ordering::Relaxed);
    let mut place = place(&door, Priority::Normal).await.unwrap();
    let progress = Rc::<Progress>::default();
    place.progress = Some(progress.clone());
    Watch::waits(&mut progress.clone());
    assert!(progress.is_awaited());
    tokio::time::sleep(Duration::from_millis(50)).await;
    Watch::data(&mut progress.clone(), &Bytes::new());
    assert!(!progress.is_awaited() && progress.waited() >= Duration::from_millis(50));
    // From its beginning to now it was less, whenever that is.
    place.since = Instant::now() + PATIENT;
    drop(place);
    assert_eq!(door.seat.answers.load(Ordering::Relaxed), 0);
}

#[test]
fn health_checks_go_before_all() {
    let header =
        HeaderCondition { name: "x-tier".parse().unwrap(), value: Some("gold".to_owned()) };
    let limit = AdaptiveConcurrency {
        priorities: vec![
            Entry { header: Some(header), path_prefix: None, level: PriorityLevel::Critical },
            Entry {
                header: None,
                path_prefix: Some("/batch".into()),
                level: PriorityLevel::Sheddable,
            },
        ],
        ..AdaptiveConcurrency::default()
    };
    let probe =
        Probe::Http { path: "/healthz?full".parse().unwrap(), host: None, statuses: vec![] };
    let checked = Settings {
        health_check: Some(HealthCheck { probe, ..HealthCheck::default() }),
        ..Settings::default()
    };
    let of = |settings: &Settings, path: &str, headers: &[(&'static str, &'static str)]| {
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = path.parse().unwrap();
        *request.headers_mut() = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        priority(settings, &limit, &request)
    };
    let gold = [("x-tier", "gold")];
    let probe = [("user-agent", "kube-probe/1.30")];
    for (path, headers, expected) in [
        ("/healthz", &[][..], Priority::Health),
        ("/healthz/more", &[], Priority::Normal),
        ("/grpc.health.v1.Health/Check", &[], Priority::Health),
        ("/", &gold, Priority::Critical),
        ("/batch/1", &gold, Priority::Critical),
        ("/batch/1", &[], Priority::Sheddable),
        // Anybody can say that.
        ("/", &probe, Priority::Normal),
    ] {
        assert_eq!(of(&checked, path, headers), expected, "{path} {headers:?}");
    }
    assert_eq!(of(&Settings::default(), "/healthz", &[]), Priority::Normal);
}
