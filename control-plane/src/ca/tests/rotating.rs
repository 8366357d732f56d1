//! Rotation: each step, each way back, and the waiting.

use super::*;

/// Proxies that are connected, and those that have the bundle.
#[derive(Default)]
struct Ships {
    connected: Vec<&'static str>,
    have: Vec<&'static str>,
    asked: Mutex<Vec<u64>>,
}

impl Fleet for Ships {
    fn connected(&self) -> Vec<Member> {
        self.connected.iter().map(|name| Member::from(*name)).collect()
    }

    fn have_bundle(&self, generation: u64) -> Vec<Member> {
        self.asked.lock().unwrap().push(generation);
        self.have.iter().map(|name| Member::from(*name)).collect()
    }
}

fn ships(connected: &[&'static str], have: &[&'static str]) -> Ships {
    Ships { connected: connected.into(), have: have.into(), asked: Mutex::default() }
}

/// The bundle that proxies are sent.
fn stored(mesh: &Mesh) -> serde_json::Value {
    let key = crate::store::Key::new("leno.dev", "trustbundles", "leno-system", "mesh");
    mesh.store.get(&key).unwrap().json().unwrap()
}

async fn issue(mesh: &Mesh, proxy: &str) -> IssueResponse {
    let call = Call::new(Some(&mesh.token(|_| {}))).with(|request| request.proxy = proxy.into());
    mesh.call(call).await.unwrap()
}

async fn step(mesh: &Mesh, action: Rotation, fleet: &Ships) -> Status {
    mesh.authority.rotate(action, false, fleet).await.unwrap()
}

async fn refused(mesh: &Mesh, action: Rotation, fleet: &Ships) -> String {
    mesh.authority.rotate(action, false, fleet).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_bundle_is_an_ordinary_resource() {
    let mesh = Mesh::new().await;
    let bundle = stored(&mesh);
    assert_eq!(bundle["spec"]["trustDomain"], "cluster.local");
    assert_eq!(bundle["spec"]["roots"][0], mesh.authority.bundle_pem());
    assert_eq!(bundle["metadata"]["generation"], 1);
    assert!(bundle["metadata"]["uid"].is_string());
    let mut object = bundle.clone();
    crate::objects::strip_revision(&mut object);
    let resource = leno_api::Resource::from_json(object).unwrap();
    let leno_api::model::Model::TrustBundle(model) = &resource.model else { panic!("kind") };
    assert_eq!(model.signer, mesh.authority.trust().signer.root);
    let revision = mesh.store.revision();
    mesh.authority.tick().await;
    assert_eq!(mesh.store.revision(), revision, "nothing is written for nothing");
    let mesh = mesh.restarted().await;
    assert_eq!(mesh.store.revision(), revision, "nor after a restart");
    // Whatever happens to it.
    let key = crate::store::Key::new("leno.dev", "trustbundles", "leno-system", "mesh");
    mesh.store.delete(key.clone(), crate::store::Expect::Any).await.unwrap();
    mesh.authority.tick().await;
    assert_eq!(stored(&mesh)["spec"], bundle["spec"]);
    let status = serde_json::json!({"live": 1});
    mesh.store.write_status(key, 1, status.clone()).await.unwrap();
    step(&mesh, Rotation::Add, &Ships::default()).await;
    assert_eq!(stored(&mesh)["status"], status, "kept beside the new generation");
    assert_eq!(stored(&mesh)["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_whole_rotation_leaves_nobody_behind() {
    let mesh = Mesh::new().await;
    let all = ships(&["p"], &["p"]);
    let old = issue(&mesh, "p").await;
    step(&mesh, Rotation::Add, &all).await;
    let added = issue(&mesh, "p").await;
    assert_eq!((added.roots.len(), &added.signer), (2, &old.signer));
    step(&mesh, Rotation::Switch, &all).await;
    let switched = issue(&mesh, "p").await;
    assert_ne!(switched.signer, old.signer);
    // At every moment, what anybody shows is accepted by everybody who has the roots of the step before.
    assert!(verifies(&switched, &added.roots) && verifies(&old, &switched.roots));
    let status = step(&mesh, Rotation::Drop, &all).await;
    let dropped = issue(&mesh, "p").await;
    assert_eq!(dropped.roots.len(), 1);
    assert!(verifies(&switched, &dropped.roots) && !verifies(&old, &dropped.roots));
    assert_eq!(status.roots.len(), 1);
    assert_eq!(status.step, Some("idle"));
    assert_eq!(stored(&mesh)["spec"]["roots"].as_array().unwrap().len(), 1);
    assert_eq!(stored(&mesh)["metadata"]["generation"], 4);
    let pem = fs::read_to_string(mesh.directory.path().join(ROOT_FILE)).unwrap();
    assert_eq!(pem, mesh.authority.bundle_pem());
    let mesh = mesh.restarted().await;
    assert_eq!(mesh.authority.bundle_pem(), pem);
}

#[tokio::test]
async fn every_step_can_be_undone_also_after_a_restart() {
    let mut mesh = Mesh::new().await;
    let all = ships(&["p"], &["p"]);
    let idle = mesh.authority.bundle_pem();
    issue(&mesh, "p").await;
    step(&mesh, Rotation::Add, &all).await;
    mesh = mesh.restarted().await;
    step(&mesh, Rotation::Undo, &all).await;
    assert_eq!(mesh.authority.bundle_pem(), idle);

    step(&mesh, Rotation::Add, &all).await;
    let signer = mesh.authority.trust().signer.root.clone();
    step(&mesh, Rotation::Switch, &all).await;
    mesh = mesh.restarted().await;
    let new = issue(&mesh, "p").await;
    let status = step(&mesh, Rotation::Undo, &all).await;
    assert_eq!((status.step, status.roots.len()), (Some("added"), 2));
    assert_eq!(issue(&mesh, "p").await.signer, signer);

    step(&mesh, Rotation::Switch, &all).await;
    issue(&mesh, "p").await;
    step(&mesh, Rotation::Drop, &all).await;
    mesh = mesh.restarted().await;
    let status = step(&mesh, Rotation::Undo, &all).await;
    assert_eq!((status.step, status.roots.len()), (Some("switched"), 2));
    let again = issue(&mesh, "p").await;
    assert_eq!(again.signer, new.signer);
    step(&mesh, Rotation::Undo, &all).await;
    issue(&mesh, "p").await;
    step(&mesh, Rotation::Undo, &all).await;
    assert_eq!(mesh.authority.bundle_pem(), idle, "all the way back");
    assert!(refused(&mesh, Rotation::Undo, &all).await.contains("no step"));
}

#[tokio::test]
async fn a_step_waits_for_whoever_lags() {
    let mesh = Mesh::new().await;
    for proxy in ["p", "q"] {
        issue(&mesh, proxy).await;
    }
    let (all, lagging) = (ships(&["p", "q"], &["p", "q"]), ships(&["p", "q"], &["q"]));
    step(&mesh, Rotation::Add, &lagging).await;
    let pem = mesh.authority.bundle_pem();
    let told = refused(&mesh, Rotation::Switch, &lagging).await;
    assert_eq!(told, "1 of 2 proxies have the roots of the step before, wait for: p");
    assert_eq!(mesh.authority.bundle_pem(), pem);
    assert_eq!(lagging.asked.lock().unwrap().last(), Some(&2), "of this generation");
    let status = mesh.authority.status(&lagging);
    assert_eq!((status.connected, status.have_bundle), (2, 1));
    assert_eq!(status.waiting_for, ["p"]);
    let blocked = status.next.iter().find(|next| next.action == Rotation::Switch).unwrap();
    assert!(blocked.blocked.as_ref().unwrap().contains("wait for: p"));

    step(&mesh, Rotation::Switch, &all).await;
    issue(&mesh, "q").await;
    let told = refused(&mesh, Rotation::Drop, &all).await;
    assert_eq!(told, "1 of 2 proxies have a certificate of the other root, wait for: p");
    assert_eq!(mesh.authority.status(&all).on_other_root, ["p"]);
    issue(&mesh, "p").await;
    step(&mesh, Rotation::Drop, &all).await;
    assert!(mesh.authority.rotate(Rotation::Switch, true, &all).await.is_err(), "nothing to force");
}

#[tokio::test]
async fn force_does_not_wait() {
    let mesh = Mesh::new().await;
    issue(&mesh, "p").await;
    let lagging = ships(&["p"], &[]);
    for action in [Rotation::Add, Rotation::Switch, Rotation::Drop] {
        mesh.authority.rotate(action, true, &lagging).await.unwrap();
    }
    assert_eq!(mesh.authority.status(&lagging).roots.len(), 1);
}

#[tokio::test]
async fn after_a_restart_those_that_will_come_back_are_waited_for() {
    let mesh = Mesh::new().await;
    issue(&mesh, "p").await;
    step(&mesh, Rotation::Add, &ships(&["p"], &["p"])).await;
    let mesh = mesh.restarted().await;
    let nobody = Ships::default();
    let told = refused(&mesh, Rotation::Switch, &nobody).await;
    assert_eq!(told, "0 of 1 proxies have the roots of the step before, wait for: p");
    assert_eq!(mesh.authority.status(&nobody).absent, 1);
    step(&mesh, Rotation::Switch, &ships(&["p"], &["p"])).await;
}

#[tokio::test]
async fn our_own_ports_move_with_the_root() {
    let mesh = Mesh::new().await;
    let mut server = mesh.authority.server();
    let before = Arc::as_ptr(&server.borrow_and_update());
    step(&mesh, Rotation::Add, &Ships::default()).await;
    assert!(server.has_changed().unwrap(), "clients of the new root are let in");
    assert_ne!(Arc::as_ptr(&server.borrow_and_update()), before);
    step(&mesh, Rotation::Switch, &Ships::default()).await;
    assert!(server.has_changed().unwrap());
}
