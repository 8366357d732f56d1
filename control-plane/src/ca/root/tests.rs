use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::ca::rotation::{Action, Refused};

const NOW: i64 = 1_800_000_000;

fn roots(directory: &TempDir) -> Roots {
    Roots::new(directory.path(), &TrustDomain::parse("cluster.local").unwrap())
}

fn step(roots: &Roots, state: &State, action: Action) -> State {
    let next = state.after(action, || {
        roots.make(NOW).map_err(|_| Refused::OutOfOrder { action: "make", reason: "x" })
    });
    let next = next.unwrap();
    roots.save(&next).unwrap();
    next
}

fn files_of(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let directory = TempDir::new().unwrap();
    let state = roots(&directory).state(NOW).unwrap();
    let trust = roots(&directory).trust(state.clone(), NOW).unwrap();
    assert_eq!(roots(&directory).state(NOW + 5).unwrap(), state);
    let again = roots(&directory).trust(state, NOW + 5).unwrap();
    assert_eq!(trust.roots, again.roots);
    assert_eq!(trust.signer.root, trust.roots[0].fingerprint);
    assert!(trust.signer.chain.is_empty(), "the root is not delivered");
    for name in files_of(&directory) {
        let mode = fs::metadata(directory.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_root_says_what_it_is() {
    let directory = TempDir::new().unwrap();
    let state = roots(&directory).state(NOW).unwrap();
    let root = &roots(&directory).trust(state, NOW).unwrap().roots[0];
    assert_eq!(root.not_after - NOW, 3652 * 86_400);
    assert_eq!(root.not_before, NOW - 3600, "for clocks an hour behind");
    assert!(root.subject.contains("Leno root"), "{}", root.subject);
    let (_, certificate) = parse_x509_certificate(&root.der).unwrap();
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    certificate.verify_signature(None).unwrap();
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = TempDir::new().unwrap();
    let state = roots(&directory).state(NOW).unwrap();
    let key = roots(&directory).file(state.signer(), "key");
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let refused = roots(&directory).trust(state.clone(), NOW).unwrap_err().to_string();
        assert!(refused.contains("chmod 600") && refused.contains(".key"), "{refused}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    roots(&directory).trust(state, NOW).unwrap();
}

#[test]
fn damaged_files_are_named() {
    let directory = TempDir::new().unwrap();
    let roots = roots(&directory);
    let state = roots.state(NOW).unwrap();
    let key = roots.file(state.signer(), "key");
    let good = fs::read(&key).unwrap();
    let secret = String::from_utf8(good.clone()).unwrap();
    let other = KeyPair::generate().unwrap().serialize_pem();
    for (bad, says) in [("garbage", "no private key"), (other.as_str(), "not the one of")] {
        fs::write(&key, bad).unwrap();
        let refused = roots.trust(state.clone(), NOW).unwrap_err().to_string();
        assert!(refused.contains(says) && refused.contains(".key"), "{refused}");
        assert!(!refused.contains(secret.lines().nth(1).unwrap()));
    }
    fs::write(&key, &good).unwrap();
    fs::write(roots.file(state.signer(), "pem"), "garbage").unwrap();
    assert!(roots.trust(state, NOW).unwrap_err().to_string().contains(".pem"));
    fs::write(directory.path().join(STATE), "{}").unwrap();
    assert!(roots.state(NOW).unwrap_err().to_string().contains("state.json"));
}

#[test]
fn a_lost_state_is_found_again_where_it_is_clear() {
    let directory = TempDir::new().unwrap();
    let roots = roots(&directory);
    let state = roots.state(NOW).unwrap();
    fs::remove_file(directory.path().join(STATE)).unwrap();
    assert_eq!(roots.state(NOW).unwrap(), state, "no second root");
    step(&roots, &state, Action::Add);
    fs::remove_file(directory.path().join(STATE)).unwrap();
    assert!(roots.state(NOW).unwrap_err().to_string().contains("several roots"));
}

#[test]
fn files_go_with_the_roots() {
    let directory = TempDir::new().unwrap();
    let roots = roots(&directory);
    let idle = roots.state(NOW).unwrap();
    let added = step(&roots, &idle, Action::Add);
    assert_eq!(files_of(&directory).len(), 5);
    assert_eq!(step(&roots, &added, Action::Undo), idle);
    assert_eq!(files_of(&directory).len(), 3);
    let added = step(&roots, &idle, Action::Add);
    let dropped = step(&roots, &step(&roots, &added, Action::Switch), Action::Drop);
    assert_eq!(files_of(&directory).len(), 5, "kept for undo");
    let trust = roots.trust(roots.state(NOW).unwrap(), NOW).unwrap();
    assert_eq!(trust.roots.len(), 1);
    assert_ne!(trust.signer.root, idle.signer());
    step(&roots, &dropped, Action::Add);
    assert_eq!(files_of(&directory).len(), 5, "the one before is gone");
}

#[test]
fn only_authorities_are_roots() {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default().self_signed(&key).unwrap();
    assert!(Root::read(leaf.into()).unwrap_err().contains("no CA certificate"));
    assert!(Root::read(CertificateDer::from(vec![1, 2, 3])).is_err());
}
