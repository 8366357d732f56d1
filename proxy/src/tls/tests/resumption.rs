//! Sessions that are resumed, and those that must not be; roots that change meanwhile.

use super::{
    super::fixture::{LIFE, NOW, Wanted},
    *,
};

/// Lives ten times as long as others.
fn long_lived(root: &Authority, account: &str, clock: &Arc<Clock>) -> Credentials {
    let uri = id("shop", account).to_string();
    let wanted = Wanted { not_after: NOW + 10 * LIFE, ..Wanted::id(&uri) };
    Credentials::with_clock(root.material_of(&wanted), None, clock.clone()).unwrap()
}

#[tokio::test]
async fn the_second_handshake_is_a_resumed_one() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    let target = orders();
    assert_eq!(meet(&server, &client, &target).await.resumed(), (false, false));
    for inside in Inside::ALL {
        let met = meet_with(&server, &client, &target, inside).await;
        assert_eq!(met.resumed(), (true, true));
        let accepted = met.accepted.unwrap();
        assert_eq!(accepted.peer.id, id("shop", "users"), "as shown in the first one");
        assert_eq!(accepted.inside, inside, "as asked for in this one");
        assert_eq!(accepted.destination, Some((ObjectName::new("shop", "orders"), 80)));
    }
}

#[tokio::test]
async fn a_renewed_server_resumes_until_its_old_certificate_expires() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let client = long_lived(&root, "users", &clock);
    let old = root.credentials("shop", "orders", &clock);
    let target = orders();
    meet(&old, &client, &target).await.accepted.unwrap();
    let wanted = Wanted { not_after: NOW + 3 * LIFE, ..Wanted::id(&old.id().to_string()) };
    let new = Credentials::new(root.material_of(&wanted), Some(&old)).unwrap();
    assert_eq!(meet(&new, &client, &target).await.resumed(), (true, true));
    assert_eq!(meet(&new, &client, &target).await.resumed(), (true, true));
    // The session began with a certificate that has expired now: it is not even offered, so nothing fails.
    clock.set(NOW + LIFE + 1);
    assert_eq!(meet(&new, &client, &target).await.resumed(), (false, false));
    assert_eq!(meet(&new, &client, &target).await.resumed(), (true, true));
}

#[tokio::test]
async fn nothing_is_resumed_after_the_clients_certificate_has_expired() {
    let root = Authority::new("root");
    let (ours, theirs) = (Clock::new(), Clock::new());
    let server = long_lived(&root, "orders", &ours);
    let client = root.credentials("shop", "users", &theirs);
    let target = orders();
    meet(&server, &client, &target).await.accepted.unwrap();
    assert_eq!(meet(&server, &client, &target).await.resumed(), (true, true));
    // To the client's clock it is still valid.
    ours.set(NOW + LIFE + 1);
    let met = meet(&server, &client, &target).await;
    let failure = met.accepted.unwrap_err();
    assert_eq!(failure.reason, Reason::Expired);
    // In our words: rustls took the session for a good one.
    assert!(failure.text.contains("sa/users expired at"), "{failure}");
    assert!(met.connected.is_err());
}

#[tokio::test]
async fn nothing_is_resumed_after_the_servers_certificate_has_expired() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = long_lived(&root, "users", &clock);
    let target = orders();
    meet(&server, &client, &target).await.accepted.unwrap();
    clock.set(NOW + LIFE + 1);
    let met = meet(&server, &client, &target).await;
    assert_eq!(met.connected.unwrap_err().reason, Reason::Expired);
}

#[tokio::test]
async fn a_renewed_client_shows_its_new_certificate() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let old = root.credentials("shop", "users", &clock);
    let new = long_lived(&root, "users", &clock);
    let target = orders();
    meet(&server, &old, &target).await.accepted.unwrap();
    let met = meet(&server, &new, &target).await;
    assert_eq!(met.resumed(), (false, false));
    assert_eq!(met.accepted.unwrap().peer.not_after, NOW + 10 * LIFE);
}

#[tokio::test]
async fn changed_roots_end_all_sessions() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    let target = orders();
    meet(&server, &client, &target).await.accepted.unwrap();
    let next = Authority::new("next");
    let both = server.with_roots(vec![root.certificate.clone(), next.certificate.clone()]).unwrap();
    assert_eq!(meet(&both, &client, &target).await.resumed(), (false, false));
    // In another order they are the same roots.
    let same = both.with_roots(vec![next.certificate.clone(), root.certificate.clone()]).unwrap();
    assert_eq!(meet(&same, &client, &target).await.resumed(), (true, true));
    // A client whose root is no longer trusted has a session, and still gets nowhere.
    let without = same.with_roots(vec![next.certificate.clone()]).unwrap();
    let met = meet(&without, &client, &target).await;
    assert_eq!(met.accepted.unwrap_err().reason, Reason::UnknownAuthority);
}

#[tokio::test]
async fn sessions_belong_to_one_endpoint() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let orders_1 = root.credentials("shop", "orders", &clock);
    let payments = root.credentials("shop", "payments", &clock);
    let client = root.credentials("shop", "users", &clock);
    let (first, second) = (orders(), orders());
    meet(&orders_1, &client, &first).await.accepted.unwrap();
    assert_eq!(meet(&orders_1, &client, &second).await.resumed(), (false, false));
    // Somebody else has the address now: the session is of no use there, and its holder is told who it is.
    let met = meet(&payments, &client, &first).await;
    assert_eq!(met.connected.unwrap_err().reason, Reason::WrongIdentity);
    // A session with one who was expected does not open the door where another is expected, behind the same name.
    let other = Target::new(NAME, id("shop", "payments")).unwrap();
    let met = meet(&orders_1, &client, &other).await;
    assert_eq!(met.connected.unwrap_err().reason, Reason::WrongIdentity);
}

#[tokio::test]
async fn a_session_does_not_survive_another_identity_of_the_server() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let before = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    let target = orders();
    meet(&before, &client, &target).await.accepted.unwrap();
    let after = Credentials::new(root.material("shop", "payments"), Some(&before)).unwrap();
    let met = meet(&after, &client, &target).await;
    assert_eq!(met.connected.unwrap_err().reason, Reason::WrongIdentity);
}

#[tokio::test]
async fn only_a_few_tickets_are_kept() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    let target = orders();
    // Ten connections are opened before any of them has brought its ticket.
    let mut opened = Vec::new();
    for _ in 0..10 {
        let (near, far) = sockets().await;
        let (accepted, connected) = tokio::join!(
            server::accept(far, &server),
            client::connect(near, &client, &target, Inside::Tcp)
        );
        opened.push((accepted.unwrap(), connected.unwrap()));
    }
    for (accepted, connected) in &mut opened {
        accepted.stream.write_all(b"!").await.unwrap();
        accepted.stream.flush().await.unwrap();
        connected.read_u8().await.unwrap();
    }
    let mut resumed = 0;
    for _ in 0..5 {
        let (near, far) = sockets().await;
        let (accepted, connected) = tokio::join!(
            server::accept(far, &server),
            client::connect(near, &client, &target, Inside::Tcp)
        );
        accepted.unwrap();
        resumed += i32::from(client::resumed(&connected.unwrap()));
    }
    assert_eq!(resumed, 2);
}

/// The steps of a rotation: every proxy may be one step ahead of another.
#[tokio::test]
async fn a_root_rotates_without_a_failed_handshake() {
    let (old, new, clock) = (Authority::new("old"), Authority::new("new"), Clock::new());
    let roots = |authorities: &[&Authority]| -> Vec<_> {
        authorities.iter().map(|authority| authority.certificate.clone()).collect()
    };
    let steps = |account: &str| {
        let start = old.credentials("shop", account, &clock);
        let added = start.with_roots(roots(&[&old, &new])).unwrap();
        let mut material = new.material("shop", account);
        material.roots = roots(&[&old, &new]);
        let switched = Credentials::new(material, Some(&added)).unwrap();
        let dropped = switched.with_roots(roots(&[&new])).unwrap();
        [start, added, switched, dropped]
    };
    let (servers, clients) = (steps("orders"), steps("users"));
    let target = orders();
    for (at, server) in servers.iter().enumerate() {
        for client in &clients[at.saturating_sub(1)..(at + 2).min(4)] {
            for _ in 0..2 {
                let met = meet(server, client, &target).await;
                met.accepted.unwrap();
                met.connected.unwrap();
            }
        }
    }
    // Two steps apart they would not understand each other: that is why each step waits for everybody.
    assert!(meet(&servers[0], &clients[2], &target).await.accepted.is_err());
}
