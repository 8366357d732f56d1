use std::{fs, os::unix::fs::PermissionsExt};

use tempfile::TempDir;

use super::*;

fn target<'a>(plural: &'a str, namespace: Option<&'a str>) -> Target<'a> {
    Target { group: "leno.dev", plural, namespace }
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
    let admin = tokens.issue("alice", Role::Admin, None).unwrap();
    let workload = tokens.issue("orders", Role::Workload, Some("shop")).unwrap();
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
    let first = tokens.issue("one", Role::Viewer, None).unwrap();
    let text = fs::read_to_string(tokens.path()).unwrap();
    assert!(!text.contains(&first) && text.contains("sha256"));
    assert_eq!(fs::metadata(tokens.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let other = TokenFile::open(directory.path()).unwrap();
    let second = other.issue("two", Role::Viewer, None).unwrap();
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
    assert!(matches!(tokens.issue("x", Role::Workload, None), Err(TokenError::NoNamespace(_))));
}
