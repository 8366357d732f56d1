use leno_api::model::{Model, cache_policy::CachePolicy};
use serde_json::{Value, json};

use super::*;
use crate::cache::policy::fixtures::headers as fields;

const NOW: Duration = Duration::from_secs(1_000_000);

fn policy(spec: Value) -> Arc<CachePolicy> {
    let mut object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "CachePolicy",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": spec,
    });
    object["spec"]["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "p"}]);
    match leno_api::Resource::from_json(object).unwrap().model {
        Model::CachePolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

type Fields<'a> = &'a [(&'static str, &'a str)];

fn kept(
    spec: Value,
    asked: Fields<'_>,
    status: u16,
    answered: Fields<'_>,
) -> Result<Stored, &'static str> {
    let (asked, answered) = (fields(asked), fields(answered));
    let question = Question {
        method: &Method::GET,
        authority: "p.shop",
        target: &Uri::from_static("/a?b"),
        headers: &asked,
        directives: &Directives::of_request(&asked),
        identity: &"spiffe://a".into(),
        extra: &Arc::from(&b"x"[..]),
    };
    let answer = Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: &answered,
        times: Times { requested: NOW, received: NOW },
    };
    of(&policy(spec), question, answer, Arc::default())
}

fn lifetime(spec: Value, status: u16, answered: Fields<'_>) -> Result<u64, &'static str> {
    kept(spec, &[], status, answered).map(|stored| stored.freshness.lifetime.as_secs())
}

#[test]
fn silence_is_filled_by_the_policy() {
    let both = || json!({"defaultTtl": "30s", "negativeTtl": "5s"});
    for (spec, status, answered, expected) in [
        (json!({}), 200, &[][..], Err("no-freshness")),
        (json!({}), 200, &[("cache-control", "max-age=7")], Ok(7)),
        (both(), 200, &[], Ok(30)),
        (both(), 200, &[("cache-control", "max-age=7")], Ok(7)),
        (both(), 404, &[], Ok(5)),
        (both(), 404, &[("cache-control", "max-age=7")], Ok(7)),
        (json!({"defaultTtl": "30s"}), 404, &[], Ok(30)),
        // An error of the moment is not kept for want of a word.
        (both(), 500, &[], Err("no-freshness")),
        (both(), 503, &[], Err("no-freshness")),
        (both(), 302, &[], Err("no-freshness")),
        (both(), 200, &[("set-cookie", "a=b")], Err("no-freshness")),
        (both(), 200, &[("cache-control", "no-store")], Err("no-store")),
        (both(), 200, &[("cache-control", "private")], Err("private")),
        (both(), 206, &[("cache-control", "max-age=7")], Err("status")),
    ] {
        assert_eq!(
            lifetime(spec.clone(), status, answered),
            expected,
            "{spec} {status} {answered:?}"
        );
    }
}

#[test]
fn cookies_of_one_user_are_kept_only_when_the_origin_says_so() {
    let guessed = [("set-cookie", "a=b"), ("last-modified", "Wed, 01 Jan 1970 00:00:00 GMT")];
    assert_eq!(lifetime(json!({}), 200, &guessed), Err("set-cookie"));
    assert_eq!(
        lifetime(json!({}), 200, &[("set-cookie", "a=b"), ("cache-control", "max-age=7")]),
        Ok(7)
    );
}

#[test]
fn statuses_can_be_named() {
    let only = || json!({"statuses": [200, 404]});
    let fresh = [("cache-control", "max-age=7")];
    assert_eq!(lifetime(only(), 404, &fresh), Ok(7));
    assert_eq!(lifetime(only(), 301, &fresh), Err("status"));
}

#[test]
fn force_overrules_the_origin_but_makes_nothing_public() {
    let force = || json!({"forceTtl": "1m"});
    for answered in [
        &[][..],
        &[("cache-control", "no-store, private")],
        &[("set-cookie", "a=b")],
        &[("cache-control", "public, max-age=7"), ("age", "100")],
    ] {
        let stored = kept(force(), &[], 200, answered).unwrap();
        assert_eq!(stored.freshness.lifetime.as_secs(), 60, "{answered:?}");
        assert!(stored.freshness.is_fresh(NOW), "{answered:?}");
        assert_eq!(stored.audience, Audience::Only("spiffe://a".into()), "{answered:?}");
    }
    assert_eq!(kept(force(), &[], 200, &[("vary", "*")]).unwrap_err(), "vary-star");
    let refused = |asked: Fields<'_>| kept(force(), asked, 200, &[]).unwrap_err();
    assert_eq!(refused(&[("authorization", "x")]), "authorization");
    assert_eq!(refused(&[("cache-control", "no-store")]), "request-no-store");
    assert_eq!(lifetime(force(), 500, &[]), Err("no-freshness"));
}

#[test]
fn only_what_is_public_is_for_everybody() {
    let audience = |control: &str, asked: Fields<'_>| {
        kept(json!({}), asked, 200, &[("cache-control", control)]).map(|stored| stored.audience)
    };
    let own = Audience::Only("spiffe://a".into());
    assert_eq!(audience("max-age=7", &[]), Ok(own.clone()));
    assert_eq!(audience("s-maxage=7", &[("authorization", "x")]), Ok(own));
    assert_eq!(audience("public, max-age=7", &[("authorization", "x")]), Ok(Audience::Everybody));
    assert_eq!(audience("max-age=7", &[("authorization", "x")]), Err("authorization"));
}

#[test]
fn tags_are_found_where_they_stand_and_bounded() {
    let tags = |spec: Value, answered: Fields<'_>| {
        let fresh = [answered, &[("cache-control", "max-age=7")]].concat();
        let stored = kept(spec, &[], 200, &fresh).unwrap();
        stored.tags.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let answered = [("surrogate-key", "a  b"), ("cache-tag", "c, d,"), ("x-tags", "e f,g")];
    assert_eq!(tags(json!({}), &answered), ["a", "b", "c", "d"]);
    assert_eq!(tags(json!({"tagsHeader": "X-Tags"}), &answered), ["e", "f", "g"]);
    let (long, many) = ("x".repeat(LONGEST_TAG + 1), "y ".repeat(2 * MOST_TAGS));
    assert!(tags(json!({}), &[("surrogate-key", &long)]).is_empty());
    assert_eq!(tags(json!({}), &[("surrogate-key", &many)]).len(), MOST_TAGS);
}
