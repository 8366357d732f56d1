use std::{fs, os::unix::fs::PermissionsExt};

use tempfile::TempDir;

use super::*;

fn target<'a>(plural: &'a str, namespace: Option<&'a str>) -> Target<'a> {
    Target { group: "leno.dev", plural, namespace }
}

fn new<'a>(name: &'a str, role: Role, namespace: Option<&'a str>) -> NewToken<'a> {
    NewToken { name, role, namespace, service_account: None, expires: None, once: false }
}

fn access(directory: &TempDir, bind: &str, require_token: bool) -> Access {
    let tokens = TokenFile::open(directory.path()).unwrap();
    Access::new(tokens, bind.parse().unwrap(), require_token)
}

#[test]
fn without_a_token_only_loopback_is_served() {
    let directory = TempDir::new().unwrap();
    assert_eq!(access(&directory, "127.0.0.1:0", false).caller(None).unwrap().role, Role::Admin);
    assert!(access(&directory, "[::1]:0", false).caller(None).is_ok());
    for (bind, require) in [("0.0.0.0:0", false), ("10.1.2.3:0", false), ("127.0.0.1:0", true)] {
        let denied = access(&directory, bind, require).caller(None);
        assert!(matches!(denied, Err(Denied::NoToken)), "{bind} {require}");
    }
}

#[test]
fn a_token_names_its_bearer_and_a_wrong_one_is_never_anonymous() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let admin = tokens.issue(new("alice", Role::Admin, None)).unwrap();
    let workload = tokens.issue(new("orders", Role::Workload, Some("shop"))).unwrap();
    let access = access(&directory, "127.0.0.1:0", false);
    let caller = |token: &str| access.caller(Some(format!("Bearer {token}").as_bytes()));
    assert_eq!(caller(&admin).unwrap().name, "alice");
    assert_eq!(caller(&workload).unwrap().namespace.as_deref(), Some("shop"));
    assert!(matches!(caller("wrong"), Err(Denied::Unknown(_))));
    assert!(matches!(caller(&admin[1..]), Err(Denied::Unknown(_))));
    for header in ["Basic YTpi", "Bearer ", "Bearer", ""] {
        let denied = access.caller(Some(header.as_bytes()));
        assert!(matches!(denied, Err(Denied::NotBearer)), "{header:?}");
    }
}

#[test]
fn each_role_does_its_own_things() {
    let caller = |role, namespace: Option<&str>| Caller {
        name: "x".into(),
        role,
        namespace: namespace.map(Into::into),
        service_account: None,
    };
    let shop = target("services", Some("shop"));
    let viewer = caller(Role::Viewer, None);
    assert!(viewer.may(Action::Read(target("services", None))).is_ok());
    assert!(viewer.may(Action::Discover).is_ok());
    let denied = viewer.may(Action::Write(shop)).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "\"x\" (role Viewer) may not write services in namespace \"shop\""
    );
    assert!(caller(Role::Admin, None).may(Action::Write(shop)).is_ok());
    let workload = caller(Role::Workload, Some("shop"));
    assert!(workload.may(Action::Write(target("workloads", Some("shop")))).is_ok());
    for refused in [
        Action::Write(target("workloads", Some("other"))),
        Action::Write(target("workloads", None)),
        Action::Read(target("workloads", None)),
        Action::Write(shop),
        Action::Read(shop),
    ] {
        assert!(workload.may(refused).is_err(), "{refused:?}");
    }
    let homeless = caller(Role::Workload, None);
    assert!(homeless.may(Action::Write(target("workloads", None))).is_err());
}

#[test]
fn the_file_holds_digests_only_and_is_read_again_when_it_changes() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let first = tokens.issue(new("one", Role::Viewer, None)).unwrap();
    let text = fs::read_to_string(tokens.path()).unwrap();
    assert!(!text.contains(&first) && text.contains("sha256"));
    assert_eq!(fs::metadata(tokens.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let other = TokenFile::open(directory.path()).unwrap();
    let second = other.issue(new("two", Role::Viewer, None)).unwrap();
    assert!(tokens.find(second.as_bytes()).unwrap().is_some(), "written by another process");
    fs::write(tokens.path(), "{}").unwrap();
    assert!(tokens.find(second.as_bytes()).unwrap().is_none(), "revoked");
    fs::write(tokens.path(), "{\"tokens\": [{\"name\": \"x\"}]}").unwrap();
    let error = tokens.find(second.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("tokens.json"), "{error}");
}

#[test]
fn a_workload_token_needs_a_namespace() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    assert!(matches!(
        tokens.issue(new("x", Role::Workload, None)),
        Err(TokenError::NoNamespace(_))
    ));
}

fn bearer_of(token: &str) -> Vec<u8> {
    format!("Bearer {token}").into_bytes()
}

#[test]
fn an_expired_token_is_no_token() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let issue = |expires| {
        let new = NewToken { expires: Some(expires), ..new("temporary", Role::Admin, None) };
        bearer_of(&tokens.issue(new).unwrap())
    };
    let (old, fresh) = (issue(tokens::now() - 1), issue(tokens::now() + 1000));
    let access = access(&directory, "127.0.0.1:0", false);
    assert_eq!(access.caller(Some(&fresh)).unwrap().name, "temporary");
    // The next token that was made has swept it away.
    assert!(matches!(access.caller(Some(&old)), Err(Denied::Unknown(_))));
    let last = issue(tokens::now());
    assert!(matches!(access.caller(Some(&last)), Err(Denied::Expired(_))));
}

#[test]
fn a_token_of_one_use_is_used_once_by_whoever_comes_first() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let other = TokenFile::open(directory.path()).unwrap();
    let once = NewToken { once: true, ..new("orders", Role::Workload, Some("shop")) };
    let token = tokens.issue(once).unwrap();
    let denied = access(&directory, "127.0.0.1:0", false).caller(Some(&bearer_of(&token)));
    assert!(matches!(denied, Err(Denied::OnlyForACertificate(_))));
    assert!(tokens.consume(token.as_bytes()).unwrap());
    // The other has read the file before; it must notice.
    assert!(!other.consume(token.as_bytes()).unwrap());
    assert!(!tokens.consume(token.as_bytes()).unwrap());
    assert!(tokens.find(token.as_bytes()).unwrap().unwrap().used);
    let again = TokenFile::open(directory.path()).unwrap();
    assert!(!again.consume(token.as_bytes()).unwrap(), "after a restart");
}

#[test]
fn of_many_that_use_a_token_at_once_one_succeeds() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let once = NewToken { once: true, ..new("orders", Role::Workload, Some("shop")) };
    let token = tokens.issue(once).unwrap();
    let attempts: Vec<_> = (0..8)
        .map(|_| {
            let (path, token) = (directory.path().to_owned(), token.clone());
            std::thread::spawn(move || {
                TokenFile::open(&path).unwrap().consume(token.as_bytes()).unwrap()
            })
        })
        .collect();
    let used = attempts.into_iter().map(|attempt| attempt.join().unwrap());
    assert_eq!(used.filter(|used| *used).count(), 1);
}

#[test]
fn nobody_waits_for_whoever_holds_the_lock() {
    let directory = TempDir::new().unwrap();
    let tokens = std::sync::Arc::new(TokenFile::open(directory.path()).unwrap());
    let once = NewToken { once: true, ..new("orders", Role::Workload, Some("shop")) };
    let token = tokens.issue(once).unwrap();
    // A command line that was stopped in the middle of making a token.
    let lock = fs::File::options().write(true).open(directory.path().join("tokens.json.lock"));
    let lock = lock.unwrap();
    lock.lock().unwrap();
    let using = std::thread::spawn({
        let (tokens, token) = (tokens.clone(), token.clone());
        move || tokens.consume(token.as_bytes()).unwrap()
    });
    let (sender, receiver) = std::sync::mpsc::channel();
    let asking = std::thread::spawn({
        let tokens = tokens.clone();
        // Until well after the other one has begun to wait.
        move || {
            for _ in 0..50 {
                sender.send(tokens.find(token.as_bytes()).unwrap().is_some()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    });
    for _ in 0..50 {
        assert!(receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("it waits"));
    }
    asking.join().unwrap();
    lock.unlock().unwrap();
    assert!(using.join().unwrap());
}

#[test]
fn a_workload_token_without_a_namespace_is_good_for_none() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let token = tokens.issue(new("x", Role::Workload, Some("shop"))).unwrap();
    let text = fs::read_to_string(tokens.path()).unwrap();
    let edited = text.replace("\"namespace\": \"shop\",", "");
    assert_ne!(text, edited);
    fs::write(tokens.path(), edited).unwrap();
    let caller = access(&directory, "127.0.0.1:0", false).caller(Some(&bearer_of(&token))).unwrap();
    let target = Target { group: "leno.dev", plural: "workloads", namespace: Some("shop") };
    assert!(caller.may(Action::Write(target)).is_err());
    assert!(caller.may(Action::Read(Target { namespace: None, ..target })).is_err());
    assert!(!caller.speaks_for("shop") && !caller.speaks_for(""));
}

#[test]
fn other_tokens_are_used_as_often_as_one_likes() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let token = tokens.issue(new("orders", Role::Workload, Some("shop"))).unwrap();
    for _ in 0..2 {
        assert!(tokens.consume(token.as_bytes()).unwrap());
    }
    assert!(!tokens.consume(b"leno_unknown").unwrap());
}

#[test]
fn tokens_that_make_no_sense_are_not_made() {
    let directory = TempDir::new().unwrap();
    let tokens = TokenFile::open(directory.path()).unwrap();
    let account = NewToken { service_account: Some("orders"), ..new("x", Role::Viewer, None) };
    assert!(matches!(tokens.issue(account), Err(TokenError::NotAWorkload(_))));
    let once = NewToken { once: true, ..new("x", Role::Admin, None) };
    assert!(matches!(tokens.issue(once), Err(TokenError::OnceForPeople(_))));
    for (namespace, account) in [("Shop", "a"), ("shop", "a/b"), ("a/sa/b", "x"), ("shop", "")] {
        let workload = new("x", Role::Workload, Some(namespace));
        let named = NewToken { service_account: Some(account), ..workload };
        assert!(
            matches!(tokens.issue(named), Err(TokenError::BadName(_))),
            "{namespace} {account}"
        );
    }
}

#[test]
fn a_certificate_makes_a_workload_of_its_namespace() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap();
    let caller = Caller::workload(&id);
    assert_eq!(caller.role, Role::Workload);
    assert_eq!(caller.namespace.as_deref(), Some("shop"));
    assert_eq!(caller.service_account.as_deref(), Some("orders"));
}
