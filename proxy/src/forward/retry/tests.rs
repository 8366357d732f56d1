use http::{HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;

fn facts(idempotent: bool, keyed: bool) -> RequestFacts {
    RequestFacts { idempotent, keyed, replayable: true, remaining: None }
}

fn on(conditions: Conditions) -> Policy {
    Policy { on: conditions, ..Policy::default() }
}

fn is_again(policy: &Policy, failure: Failure) -> bool {
    matches!(decide(policy, &failure, &facts(true, false), 1, 0), Again::After(_))
}

#[test]
fn conditions_name_what_they_say() {
    use Conditions as C;
    use Failure::{Connect, Malformed, NotUpstream, Refused, Reset, TimedOut};
    let status = |status| Failure::Status(status, Wait::Unsaid);
    let failures = [
        (Connect, C::CONNECT_FAILURE.and(C::SERVER_ERROR)),
        (Refused, C::REFUSED_STREAM.and(C::SERVER_ERROR)),
        (Reset, C::RESET.and(C::SERVER_ERROR)),
        (TimedOut, C::RESET.and(C::GATEWAY_ERROR).and(C::SERVER_ERROR)),
        (Malformed, C::GATEWAY_ERROR.and(C::SERVER_ERROR)),
        (status(500), C::SERVER_ERROR),
        (status(501), C::SERVER_ERROR),
        (status(502), C::GATEWAY_ERROR.and(C::SERVER_ERROR)),
        (status(503), C::GATEWAY_ERROR.and(C::SERVER_ERROR)),
        (status(504), C::GATEWAY_ERROR.and(C::SERVER_ERROR)),
        (status(599), C::SERVER_ERROR),
        (status(408), C::NONE),
        (status(409), C::RETRIABLE_4XX),
        (status(425), C::NONE),
        (status(429), C::NONE),
        (status(404), C::NONE),
        (status(200), C::NONE),
        (status(u16::MAX), C::NONE),
        (Failure::Grpc(14, Wait::Unsaid), C::NONE),
        (NotUpstream, C::NONE),
    ];
    for (failure, named_by) in failures {
        for bit in 0..6 {
            let condition = Conditions(1 << bit);
            let expected = named_by.0 & condition.0 != 0;
            assert_eq!(is_again(&on(condition), failure), expected, "{failure:?} {condition:?}");
        }
        assert!(!is_again(&on(C::NONE), failure), "{failure:?}");
    }
}

#[test]
fn who_has_enough_to_do_has_not_processed_anything() {
    let headers = HeaderMap::from_iter([
        (outcome::OVERLOADED, HeaderValue::from_static("true")),
        (http::header::RETRY_AFTER, HeaderValue::from_static("60")),
    ]);
    let of = |status, grpc| {
        Failure::of_answer(status, grpc, &headers, || SystemTime::UNIX_EPOCH).unwrap()
    };
    let refusals = [of(StatusCode::SERVICE_UNAVAILABLE, None), of(StatusCode::OK, Some(14))];
    for failure in refusals {
        // Others may have room, also for what must not be processed twice.
        let again = decide(&Policy::default(), &failure, &facts(false, false), 1, 0);
        assert_eq!(again, Again::After(Duration::ZERO), "{failure:?}");
    }
    assert!(matches!(of(StatusCode::INTERNAL_SERVER_ERROR, None), Failure::Status(500, _)));
}

#[test]
fn codes_are_named_one_by_one() {
    let policy =
        Policy { codes: Codes::of([400, 429, 503, 599, 200, 600, 0]), ..on(Conditions::NONE) };
    for code in 0..=u16::MAX {
        let expected = [400, 429, 503, 599].contains(&code);
        assert_eq!(is_again(&policy, Failure::Status(code, Wait::Unsaid)), expected, "{code}");
    }
    let policy = Policy { grpc: GrpcCodes::of([0, 1, 14, 16, 17, 255]), ..on(Conditions::NONE) };
    for code in 0..=u8::MAX {
        let expected = [1, 14, 16].contains(&code);
        assert_eq!(is_again(&policy, Failure::Grpc(code, Wait::Unsaid)), expected, "{code}");
    }
}

#[test]
fn what_may_have_been_processed_needs_a_reason() {
    let failed = Failure::Status(503, Wait::Unsaid);
    for (repeat, idempotent, keyed, expected) in [
        (Repeat::Idempotent, true, false, true),
        (Repeat::Idempotent, false, false, false),
        // A key alone does not do: the policy has to trust it.
        (Repeat::Idempotent, false, true, false),
        (Repeat::Keyed, false, true, true),
        (Repeat::Keyed, false, false, false),
        (Repeat::Keyed, true, false, true),
        (Repeat::Declared, false, false, true),
    ] {
        let policy = Policy { repeat, ..on(Conditions::SERVER_ERROR) };
        let decided = decide(&policy, &failed, &facts(idempotent, keyed), 1, 0);
        let refused = Again::No(Reason::MayBeProcessed);
        assert_eq!(decided != refused, expected, "{repeat:?} {idempotent} {keyed}");
        // What was not processed needs none.
        let decided = decide(&policy, &Failure::Connect, &facts(idempotent, keyed), 1, 0);
        assert_eq!(decided, Again::After(Duration::ZERO));
    }
}

#[test]
fn only_two_failures_say_that_nothing_was_processed() {
    let all = Policy { on: Conditions(0x3f), grpc: GrpcCodes::of(1..=16), ..Policy::default() };
    let statuses = (500..600).chain([409]).map(|it| Failure::Status(it, Wait::Unsaid));
    let grpc = (1..=16).map(|it| Failure::Grpc(it, Wait::Unsaid));
    let others = [Failure::Reset, Failure::TimedOut, Failure::Malformed];
    for failure in statuses.chain(grpc).chain(others) {
        let decided = decide(&all, &failure, &facts(false, true), 1, 0);
        assert_eq!(decided, Again::No(Reason::MayBeProcessed), "{failure:?}");
    }
}

#[test]
fn a_request_is_idempotent_by_its_method_or_has_one_key() {
    let of = |method: &str, keys: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append("idempotency-key", HeaderValue::from_static(key));
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let facts = RequestFacts::of(&method, &headers, true, None);
        (facts.idempotent, facts.keyed)
    };
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert_eq!(of(method, &[]), (true, false), "{method}");
    }
    for method in ["POST", "PATCH", "CONNECT", "get", "PURGE"] {
        assert_eq!(of(method, &[]), (false, false), "{method}");
    }
    assert_eq!(of("POST", &["\"8e03978e-40d5-43dd-bc93-6894a57f9324\""]), (false, true));
    assert_eq!(of("POST", &["8e03978e"]), (false, true));
    for keys in [&[""][..], &["  "], &["\"\""], &["a", "b"], &["a", "a"]] {
        assert_eq!(of("POST", keys), (false, false), "{keys:?}");
    }
}

#[test]
fn waiting_is_as_asked_or_not_at_all() {
    let seconds = Duration::from_secs;
    let policy = Policy { longest_wait: seconds(2), ..on(Conditions::SERVER_ERROR) };
    let ask = |wait, remaining| {
        let request = RequestFacts { remaining, ..facts(true, false) };
        decide(&policy, &Failure::Status(503, wait), &request, 1, 0)
    };
    assert_eq!(ask(Wait::AtLeast(seconds(1)), None), Again::After(seconds(1)));
    assert_eq!(ask(Wait::AtLeast(seconds(2)), None), Again::After(seconds(2)));
    for wait in [Wait::AtLeast(seconds(3)), Wait::AtLeast(Duration::MAX), Wait::Never] {
        assert_eq!(ask(wait, None), Again::No(Reason::AskedToWait), "{wait:?}");
    }
    let left = Some(seconds(1));
    assert_eq!(ask(Wait::AtLeast(seconds(1)), left), Again::No(Reason::Deadline));
    assert_eq!(ask(Wait::Unsaid, Some(Duration::ZERO)), Again::No(Reason::Deadline));
}

#[test]
fn each_attempt_has_the_shorter_limit() {
    let seconds = Duration::from_secs;
    let policy = Policy { per_try: seconds(2), ..Policy::default() };
    assert_eq!(policy.attempt_limit(None), Some(seconds(2)));
    assert_eq!(policy.attempt_limit(Some(seconds(1))), Some(seconds(1)));
    assert_eq!(Policy::default().attempt_limit(None), None);
    assert_eq!(Policy::default().attempt_limit(Some(seconds(9))), Some(seconds(9)));
}

#[test]
fn errors_of_the_pipe_are_failures() {
    let of = |flag, retry| {
        Failure::from(&Error::upstream(StatusCode::SERVICE_UNAVAILABLE, flag, retry, ""))
    };
    assert_eq!(of(Flag::UF, Retry::Safe), Failure::Connect);
    assert_eq!(of(Flag::UC, Retry::Safe), Failure::Refused);
    assert_eq!(of(Flag::UC, Retry::Unsafe), Failure::Reset);
    assert_eq!(of(Flag::UF, Retry::Unsafe), Failure::Reset);
    assert_eq!(of(Flag::UT, Retry::Unsafe), Failure::TimedOut);
    assert_eq!(of(Flag::UPE, Retry::Unsafe), Failure::Malformed);
    for flag in [Flag::DC, Flag::DPE, Flag::UO, Flag::UH, Flag::AD, Flag::None] {
        assert_eq!(of(flag, Retry::Unsafe), Failure::NotUpstream, "{flag:?}");
    }
}

#[test]
fn reasons_have_different_names() {
    let reasons = [
        Reason::NotAsked,
        Reason::MayBeProcessed,
        Reason::NotKept,
        Reason::Attempts,
        Reason::AskedToWait,
        Reason::Deadline,
        Reason::Budget,
    ];
    let names: std::collections::BTreeSet<_> = reasons.iter().map(|r| r.as_str()).collect();
    assert_eq!(names.len(), reasons.len());
}

fn any_wait() -> impl Strategy<Value = Wait> {
    prop_oneof![
        Just(Wait::Unsaid),
        Just(Wait::Never),
        any::<u64>().prop_map(|millis| Wait::AtLeast(Duration::from_millis(millis))),
        (0u64..2000).prop_map(|millis| Wait::AtLeast(Duration::from_millis(millis))),
    ]
}

fn any_failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::Connect),
        Just(Failure::Refused),
        Just(Failure::Reset),
        Just(Failure::TimedOut),
        Just(Failure::Malformed),
        Just(Failure::NotUpstream),
        (any::<u16>(), any_wait()).prop_map(|(status, wait)| Failure::Status(status, wait)),
        (400u16..600, any_wait()).prop_map(|(status, wait)| Failure::Status(status, wait)),
        (any::<u8>(), any_wait()).prop_map(|(status, wait)| Failure::Grpc(status, wait)),
    ]
}

prop_compose! {
    fn any_policy()(
        attempts in prop_oneof![Just(0), Just(1), Just(1_000_000), Just(u32::MAX), 0u32..20],
        bits in 0u8..64,
        codes in proptest::collection::vec(400u16..600, 0..20),
        grpc in proptest::collection::vec(0u8..20, 0..5),
        repeat in prop_oneof![
            Just(Repeat::Idempotent), Just(Repeat::Keyed), Just(Repeat::Declared)
        ],
        times in any::<(u64, u64, u32)>(),
        least in prop_oneof![Just(0), 0u64..1_000_000_000],
    ) -> Policy {
        Policy {
            attempts,
            on: Conditions(bits),
            codes: Codes::of(codes),
            grpc: GrpcCodes::of(grpc),
            repeat,
            backoff: Backoff {
                base: Duration::from_nanos(times.0),
                max: Duration::from_nanos(times.1),
                least: Duration::from_nanos(least),
            },
            per_try: Duration::ZERO,
            longest_wait: Duration::from_nanos(times.2.into()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Whatever is decided: never a second time what may have been processed without leave, never what is gone, never
    /// over the attempts, never before or after what was asked for.
    #[test]
    fn an_attempt_is_never_made_without_leave(
        policy in any_policy(),
        failure in any_failure(),
        (idempotent, keyed, replayable) in any::<(bool, bool, bool)>(),
        remaining in proptest::option::of(0u64..4_000_000_000),
        attempts in prop_oneof![0u32..20, any::<u32>()],
        random: u64,
    ) {
        let remaining = remaining.map(Duration::from_nanos);
        let request = RequestFacts { idempotent, keyed, replayable, remaining };
        if let Again::After(after) = decide(&policy, &failure, &request, attempts, random) {
            let unprocessed = matches!(failure, Failure::Connect | Failure::Refused);
            let declared = policy.repeat == Repeat::Declared;
            let by_key = keyed && policy.repeat == Repeat::Keyed;
            prop_assert!(unprocessed || idempotent || by_key || declared);
            prop_assert!(replayable);
            prop_assert!(attempts < policy.attempts && attempts < MOST_ATTEMPTS);
            prop_assert!(remaining.is_none_or(|remaining| after < remaining));
            prop_assert!(failure != Failure::NotUpstream);
            let least = match failure.wait() {
                Wait::AtLeast(least) => least,
                Wait::Unsaid => Duration::ZERO,
                Wait::Never => return Err(TestCaseError::fail("asked never to be tried again")),
            };
            prop_assert!(least <= policy.longest_wait);
            let backoff = policy.backoff;
            prop_assert!(after >= least + backoff.least);
            prop_assert!(after <= least + backoff.least + backoff.max);
        }
    }

    /// An exchange whose attempts all fail ends.
    #[test]
    fn attempts_end(policy in any_policy(), failure in any_failure()) {
        let mut attempts = 1;
        while let Again::After(_) = decide(&policy, &failure, &facts(true, true), attempts, 7) {
            attempts += 1;
        }
        prop_assert!(attempts <= policy.attempts.clamp(1, MOST_ATTEMPTS));
    }

    #[test]
    fn backoff_is_jittered_over_all_of_a_growing_range(
        base in 1u64..1_000_000_000,
        max in 1u64..100_000_000_000,
        attempts in 1u32..100,
    ) {
        let backoff = Backoff {
            base: Duration::from_nanos(base),
            max: Duration::from_nanos(max),
            least: Duration::ZERO,
        };
        let exponent = (attempts - 1).min(40);
        let most = u128::from(max).min(u128::from(base) << exponent);
        prop_assert_eq!(backoff.before(attempts, 0), Duration::ZERO);
        let longest = backoff.before(attempts, u64::MAX).as_nanos();
        prop_assert!(longest <= most && longest + 1 >= most.min(u128::from(base) << 31), "{}", longest);
        let half = backoff.before(attempts, 1 << 63).as_nanos();
        prop_assert!(half.abs_diff(longest / 2) <= 1);
    }
}

#[test]
fn connections_are_tried_again_as_often_as_the_policy_says() {
    let failed = |safety| Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, safety, "");
    for (retries, attempts, expected) in
        [(0, 1, false), (1, 1, true), (1, 2, false), (2, 2, true), (2, 3, false), (10, 10, true)]
    {
        let again = super::again(&failed(Retry::Safe), attempts, retries);
        assert_eq!(again, expected, "{retries} {attempts}");
    }
    assert!(!super::again(&failed(Retry::Unsafe), 1, 5));
}
