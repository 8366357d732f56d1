use proptest::prelude::*;
use rcgen::KeyUsagePurpose;

use super::*;
use crate::tls::fixture::{Authority, LIFE, NOW, Wanted, id, self_signed, trust_domain};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn leaf(wanted: &Wanted) -> Result<Leaf, Refusal> {
    Leaf::read(&self_signed(wanted).0)
}

#[test]
fn reads_what_a_certificate_says() {
    let leaf = leaf(&Wanted::id(ORDERS)).unwrap();
    assert_eq!(leaf.id, id("shop", "orders"));
    assert_eq!((leaf.not_before, leaf.not_after), (NOW - 60, NOW + LIFE));
    assert!(!leaf.serial.is_empty() && leaf.serial.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Names of other kinds may stand beside it: the control plane's own certificate has some.
    let named = Wanted { dns: vec!["localhost".to_owned()], ..Wanted::id(ORDERS) };
    assert_eq!(self::leaf(&named).unwrap().id, id("shop", "orders"));
}

#[test]
fn exactly_one_uri_which_is_an_identity() {
    let with = |uris: &[&str], dns: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        leaf(&Wanted { uris: owned(uris), dns: owned(dns), ..Wanted::id(ORDERS) })
    };
    assert_eq!(with(&[], &[]), Err(Refusal::NoUri));
    assert_eq!(with(&[], &["orders.shop"]), Err(Refusal::NoUri));
    assert_eq!(with(&[ORDERS, ORDERS], &[]), Err(Refusal::ManyUris(2)));
    assert_eq!(with(&[ORDERS, "https://a"], &[]), Err(Refusal::ManyUris(2)));
    for uri in [
        "",
        "https://cluster.local/ns/shop/sa/orders",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/shop/sa/orders\0.evil",
        "spiffe://cluster.local/ns/shop/sa/orders\0",
        "spiffe://cluster.local\0.evil/ns/shop/sa/orders",
    ] {
        assert!(matches!(with(&[uri], &[]), Err(Refusal::BadUri { .. })), "{uri:?}");
    }
}

#[test]
fn messages_do_not_repeat_all_that_was_sent() {
    let uri = format!("spiffe://\u{1b}[31m\n{}", "x".repeat(1500));
    let refusal = leaf(&Wanted { uris: vec![uri], ..Wanted::id(ORDERS) }).unwrap_err();
    let text = refusal.to_string();
    assert!(text.len() < 1000 && !text.chars().any(char::is_control), "{text:?}");
}

#[test]
fn authorities_are_nobody() {
    let usages =
        |usages: &[KeyUsagePurpose]| Wanted { usages: usages.to_vec(), ..Wanted::id(ORDERS) };
    let authority = Wanted { authority: true, ..Wanted::id(ORDERS) };
    assert_eq!(leaf(&authority), Err(Refusal::Authority));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let both = usages(&[KeyUsagePurpose::DigitalSignature, usage]);
        assert_eq!(leaf(&both), Err(Refusal::Authority));
    }
    assert_eq!(leaf(&usages(&[KeyUsagePurpose::KeyEncipherment])), Err(Refusal::KeyUsage));
    assert!(leaf(&usages(&[])).is_ok());
}

#[test]
fn what_follows_a_certificate_is_not_ignored() {
    let (certificate, _) = self_signed(&Wanted::id(ORDERS));
    let mut longer = certificate.to_vec();
    longer.push(0);
    assert!(matches!(Leaf::read(&longer), Err(Refusal::Malformed(_))));
    assert!(matches!(Leaf::read(&[]), Err(Refusal::Malformed(_))));
}

#[test]
fn who_and_when() {
    let leaf = leaf(&Wanted { not_before: NOW, ..Wanted::id(ORDERS) }).unwrap();
    let (ours, orders) = (trust_domain(), id("shop", "orders"));
    let check = |expected, now| leaf.check(&ours, expected, now);
    assert_eq!(check(None, NOW), Ok(()));
    assert_eq!(check(Some(&orders), NOW), Ok(()));
    for other in [id("shop", "users"), id("other", "orders")] {
        let refused = leaf.check(&ours, Some(&other), NOW);
        assert!(matches!(refused, Err(Refusal::WrongIdentity { .. })));
    }
    let other = TrustDomain::parse("cluster.example").unwrap();
    assert!(matches!(leaf.check(&other, None, NOW), Err(Refusal::WrongTrustDomain { .. })));
    for (now, ok) in [(NOW - 60, true), (NOW - 61, false), (i64::MIN, false)] {
        assert_eq!(check(None, now).is_ok(), ok, "{now}");
        assert!(ok || matches!(check(None, now), Err(Refusal::NotYetValid { .. })));
    }
    for (now, ok) in [(NOW + LIFE, true), (NOW + LIFE + 1, false), (i64::MAX, false)] {
        assert_eq!(check(None, now).is_ok(), ok, "{now}");
        assert!(ok || matches!(check(None, now), Err(Refusal::Expired { .. })));
    }
}

#[test]
fn paths_are_checked_in_the_certificates_own_time_where_clocks_differ() {
    let leaf = leaf(&Wanted { not_before: NOW, not_after: NOW + 5, ..Wanted::id(ORDERS) }).unwrap();
    for (now, at) in [
        (NOW - 61, NOW - 61),
        (NOW - 60, NOW),
        (NOW - 1, NOW),
        (NOW + 3, NOW + 3),
        (NOW + 9, NOW + 9),
        (i64::MAX, i64::MAX),
        (i64::MIN, i64::MIN),
    ] {
        assert_eq!(leaf.verification_time(now), at);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a mutated certificate is taken for, it is not somebody else's.
    #[test]
    fn mutated_certificates_are_read_or_refused(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
    ) {
        static CERTIFICATE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            Authority::new("root").issue(&Wanted::id(ORDERS)).0.to_vec()
        });
        let mut bytes = CERTIFICATE.clone();
        for (at, byte, edit) in edits {
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(leaf) = Leaf::read(&bytes) {
            let uri = leaf.id.to_string();
            prop_assert!(bytes.windows(uri.len()).any(|window| window == uri.as_bytes()));
            let _ = leaf.check(&trust_domain(), None, NOW);
        }
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Leaf::read(&bytes).is_err());
    }
}
