use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
    server::WebPkiClientVerifier,
};
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use super::*;
use crate::ca::root::{Root, Trust};

const NOW: i64 = 1_800_000_000;
const ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// A root that signs leaves itself.
fn trust(not_after: i64) -> Trust {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    set_validity(&mut params, NOW - 1000, not_after);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let der: CertificateDer<'static> = params.self_signed(&key).unwrap().into();
    Trust::assemble(vec![Root::read(der.clone()).unwrap()], vec![der], key, NOW).unwrap()
}

fn csr_with(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn csr(names: Vec<SanType>) -> Vec<u8> {
    csr_with(&KeyPair::generate().unwrap(), |params| params.subject_alt_names = names)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn key_of(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn terms(ttl: u64) -> Terms {
    Terms { serial: u128::MAX, now: NOW, ttl: Duration::from_secs(ttl) }
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> (bool, Vec<&'a GeneralName<'a>>) {
    let extension = certificate.subject_alternative_name().unwrap().unwrap();
    (extension.critical, extension.value.general_names.iter().collect())
}

#[test]
fn a_certificate_is_an_svid_and_nothing_more() {
    let trust = trust(NOW + 100_000);
    let request = Request::read(&csr(vec![uri(ID)])).unwrap();
    assert_eq!(request.identity, Some(id(ID)));
    let leaf = trust.signer.svid(&request.key, &id(ID), terms(3600)).unwrap();
    assert_eq!((leaf.not_before, leaf.not_after), (NOW - 60, NOW + 3600));

    let (rest, certificate) = parse_x509_certificate(&leaf.der).unwrap();
    assert!(rest.is_empty());
    assert_eq!(certificate.validity().not_before.timestamp(), leaf.not_before);
    assert_eq!(certificate.validity().not_after.timestamp(), leaf.not_after);
    assert_eq!(certificate.subject().iter().count(), 0);
    let (critical, names) = names(&certificate);
    assert!(critical, "without a subject the name is critical");
    assert_eq!(names, [&GeneralName::URI(ID)]);
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature only");
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(certificate.raw_serial().len(), 16);
    let serial: String = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(serial, leaf.serial);
    let (_, root) = parse_x509_certificate(&trust.roots[0].der).unwrap();
    assert_eq!(certificate.issuer(), root.subject());
}

#[test]
fn tls_libraries_build_the_path_to_the_root_within_its_life_only() {
    let trust = trust(NOW + 100_000);
    let request = Request::read(&csr(vec![])).unwrap();
    let leaf = trust.signer.svid(&request.key, &id(ID), terms(3600)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(trust.store().unwrap(), provider.clone())
            .build()
            .unwrap();
    let at = |time: i64| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time).unwrap()));
        verifier.verify_client_cert(&leaf.der, &trust.signer.chain, time)
    };
    for (time, good) in
        [(NOW - 61, false), (NOW - 60, true), (NOW, true), (NOW + 3600, true), (NOW + 3601, false)]
    {
        assert_eq!(at(time).is_ok(), good, "{}", time - NOW);
    }
    let other = self::trust(NOW + 100_000);
    let strange = WebPkiClientVerifier::builder_with_provider(other.store().unwrap(), provider)
        .build()
        .unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    assert!(strange.verify_client_cert(&leaf.der, &[], now).is_err());
}

#[test]
fn a_certificate_of_our_ports_has_their_names() {
    let trust = trust(NOW + 100_000);
    let hosts = ["localhost", "mesh.example.com", "127.0.0.1", "::1"].map(ToOwned::to_owned);
    let key = KeyPair::generate().unwrap();
    let leaf = trust.signer.server(&key, &id(ID), &hosts, terms(3600)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(trust.roots[0].der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let verify = |host: &str| {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        verifier.verify_server_cert(&leaf.der, &[], &name, &[], now)
    };
    for host in &hosts {
        verify(host).unwrap();
    }
    assert!(verify("example.com").is_err());
    let wrong = trust.signer.server(&key, &id(ID), &["not a host".into()], terms(3600));
    assert!(matches!(wrong, Err(CannotSign::Name(..))));
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let trust = trust(NOW + 1000);
    let key = KeyPair::generate().unwrap();
    let leaf = trust.signer.svid(&key, &id(ID), terms(86_400)).unwrap();
    assert_eq!(leaf.not_after, NOW + 1000);
    let late = Terms { now: NOW + 995, ..terms(10) };
    let refused = trust.signer.svid(&key, &id(ID), late).unwrap_err();
    assert!(matches!(refused, CannotSign::IssuerEnds(5)), "{refused}");
    let after = Terms { now: NOW + 100_000, ..terms(10) };
    assert!(matches!(trust.signer.svid(&key, &id(ID), after), Err(CannotSign::IssuerEnds(0))));
}

#[test]
fn keys_of_good_kinds_are_certified() {
    let trust = trust(NOW + 100_000);
    for algorithm in
        [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256]
    {
        let key = key_of(algorithm);
        let request = Request::read(&csr_with(&key, |_| {})).unwrap();
        let leaf = trust.signer.svid(&request.key, &id(ID), terms(60)).unwrap();
        let (_, certificate) = parse_x509_certificate(&leaf.der).unwrap();
        assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    }
    let other = Request::read(&csr_with(&key_of(&PKCS_ECDSA_P521_SHA512), |_| {}));
    assert_eq!(other.unwrap_err(), BadRequest::Key("a key on another curve"));
}

#[test]
fn weak_rsa_keys_are_refused() {
    assert_eq!(bits(&[0, 0x80, 0, 0]), 24);
    assert_eq!(bits(&[0x01, 0xff]), 9);
    assert_eq!(bits(&[]), 0);
    assert_eq!(bits(&[0, 0]), 0);
    // Made with `openssl req -new -newkey rsa:1024 -sha256 -subj /`.
    let weak = Request::read(include_bytes!("rsa1024.csr.der"));
    assert_eq!(weak.unwrap_err(), BadRequest::Key("an RSA key outside 2048 to 8192 bits"));
    // Made with `openssl req -new -newkey rsa:2048 -sha1 -subj /`.
    let sha1 = Request::read(include_bytes!("sha1.csr.der"));
    assert_eq!(sha1.unwrap_err(), BadRequest::Key("a signature with SHA-1"));
}

#[test]
fn a_request_names_one_identity_or_none() {
    assert_eq!(Request::read(&csr(vec![])).unwrap().identity, None);
    let dns = || SanType::DnsName("orders.shop".try_into().unwrap());
    for (names, expected) in [
        (vec![dns()], "a DNS name"),
        (vec![uri(ID), dns()], "a DNS name"),
        (vec![SanType::IpAddress([127, 0, 0, 1].into())], "an IP address"),
        (vec![SanType::Rfc822Name("a@b.c".try_into().unwrap())], "no URI"),
        (vec![uri(ID), uri(ID)], "several names"),
        (vec![uri("https://cluster.local/ns/shop/sa/orders")], "which is none"),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/orders/x")], "which is none"),
        (vec![uri("spiffe://cluster.local")], "which is none"),
    ] {
        let refused = Request::read(&csr(names)).unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn a_request_to_become_an_authority_is_refused_and_usages_are_ignored() {
    let key = KeyPair::generate().unwrap();
    let authority = csr_with(&key, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let refused = Request::read(&authority).unwrap_err();
    assert_eq!(refused, BadRequest::Name("the right to issue certificates"));
    let usages = csr_with(&key, |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let custom = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        params.custom_extensions = vec![custom];
    });
    let request = Request::read(&usages).unwrap();
    let leaf = trust(NOW + 1000).signer.svid(&request.key, &id(ID), terms(60)).unwrap();
    let (_, certificate) = parse_x509_certificate(&leaf.der).unwrap();
    assert_eq!(certificate.key_usage().unwrap().unwrap().value.flags, 1);
    assert!(!certificate.extended_key_usage().unwrap().unwrap().value.code_signing);
    assert_eq!(certificate.extensions().len(), 6, "ours, and no other");
}

#[test]
fn what_is_no_request_is_refused() {
    let good = csr(vec![]);
    let mut trailing = good.clone();
    trailing.extend([0, 0]);
    assert_eq!(Request::read(&trailing).unwrap_err(), BadRequest::Trailing(2));
    let large = vec![0x30; MAX_CSR_BYTES + 1];
    assert_eq!(Request::read(&large).unwrap_err(), BadRequest::TooLarge(MAX_CSR_BYTES + 1));
    for garbage in [&b""[..], b"-----BEGIN CERTIFICATE REQUEST-----", &good[..good.len() - 1]] {
        assert_eq!(Request::read(garbage).unwrap_err(), BadRequest::Malformed);
    }
    // Somebody else's public key in a request that one has signed oneself.
    let (mine, theirs) = (csr(vec![]), csr(vec![]));
    let point = |csr: &[u8]| csr.windows(2).position(|two| two == [0x00, 0x04]).unwrap();
    let (to, from) = (point(&mine), point(&theirs));
    let mut stolen = mine.clone();
    stolen[to..to + 66].copy_from_slice(&theirs[from..from + 66]);
    assert_eq!(Request::read(&stolen).unwrap_err(), BadRequest::Signature);
}

#[test]
fn somebody_elses_identity_is_refused() {
    let request = |names| Request::read(&csr(names)).unwrap();
    let check =
        |names, namespace, account| request(names).check_identity(&id(ID), namespace, account);
    check(vec![], "shop", "orders").unwrap();
    check(vec![uri(ID)], "shop", "orders").unwrap();
    for (names, namespace, account) in [
        (vec![], "shop", "payments"),
        (vec![], "bank", "orders"),
        (vec![], "", ""),
        (vec![], "shop/sa", "orders"),
        (vec![uri("spiffe://cluster.local/ns/shop/sa/payments")], "shop", "orders"),
        (vec![uri("spiffe://other/ns/shop/sa/orders")], "shop", "orders"),
    ] {
        let foreign = check(names, namespace, account).unwrap_err().to_string();
        assert!(foreign.contains(ID), "{foreign}");
    }
}

#[test]
fn a_signer_shows_no_key() {
    let trust = trust(NOW + 1000);
    let shown = format!("{:?}", trust.signer);
    assert!(shown.contains(&trust.signer.root) && !shown.contains("key"), "{shown}");
}

proptest! {
    #[test]
    fn what_was_signed_cannot_be_changed(at in 0usize..1000, bit in 0u8..8) {
        let whole = csr(vec![uri(ID)]);
        let mut damaged = whole.clone();
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        // Outside of what is signed, a bit or two have no meaning.
        if let Ok(request) = Request::read(&damaged) {
            let whole = Request::read(&whole).unwrap();
            prop_assert_eq!(request.identity, whole.identity);
            prop_assert_eq!(request.key, whole.key);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Request::read(&bytes).is_err());
    }
}
