mod plugins;

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use leno_api::{Resource, yaml};
use prometheus::Registry;
use tokio::task::LocalSet;

use super::*;
use crate::{
    cluster::Security,
    filter::jwt::{KeyCache, Timing},
    identity::{self, Files},
    telemetry::scope::Party,
    tls::fixture::{Authority, Wanted},
};

const PATIENCE: Duration = Duration::from_secs(120);
const MESH: &str = r"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {name: orders-1, namespace: shop}
spec: {services: [orders], address: 10.0.0.1, ports: {default: 9001}, sidecar: {port: 15008, mutualTls: true}}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{}]}
";

fn items(text: &str) -> Vec<Item> {
    let (good, bad) = yaml::resources(text);
    assert!(bad.is_empty(), "{bad:?}");
    let item =
        |resource: Resource| crate::config::source::Packer::default().item(resource, "{}", "");
    good.into_iter().map(item).collect()
}

fn applier(identity: Arc<Identity>) -> (Applier, Arc<Published>, Arc<Families>) {
    let (published, _) = Published::new(false);
    let families = Arc::new(Families::register(Registry::new()).unwrap());
    let own = Own {
        namespace: "shop".to_owned(),
        party: Party::default(),
        workload: None,
        zone: None,
        application: [127, 0, 0, 1].into(),
        proof: Proof::default(),
        issuer_keys: KeyCache::new(Timing::default()),
    };
    let known = (published.clone(), families.clone());
    (Applier::new(published, families, identity, own, None, false, None), known.0, known.1)
}

fn upserts(text: &str) -> Update {
    Update::Changed(Change { upserts: items(text), ..Change::default() })
}

/// Files with a certificate of the mesh `trust_domain`.
fn write(folder: &Path, trust_domain: &str) -> Files {
    let root = Authority::new(trust_domain);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let (not_before, not_after) = (now - 60, now + 3600);
    let uri = format!("spiffe://{trust_domain}/ns/shop/sa/users");
    let (certificate, key) = root.issue(&Wanted { not_before, not_after, ..Wanted::id(&uri) });
    let file = |name: &str, what: &str, der: &[u8]| {
        let path = folder.join(name);
        let text = STANDARD.encode(der);
        std::fs::write(&path, format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n"))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    Files {
        certificate: file("certificate.pem", "CERTIFICATE", &certificate),
        key: file("key.pem", "PRIVATE KEY", key.secret_der()),
        roots: file("roots.pem", "CERTIFICATE", &root.certificate),
    }
}

/// Whom the endpoint of `orders` has to be.
fn expected(published: &Published) -> Option<String> {
    let snapshot = published.load();
    let cluster = &snapshot.service("orders")?.ports[0].cluster;
    match &cluster.endpoints[0].security {
        Security::Mutual(target) => Some(target.expected().to_string()),
        _ => None,
    }
}

#[tokio::test]
async fn another_certificate_is_taken_up_without_another_configuration() {
    let test = async {
        let folder = tempfile::tempdir().unwrap();
        let families = Families::register(Registry::new()).unwrap();
        let files = write(folder.path(), "one");
        let source = identity::Source::Files(files);
        let (identity, keeping) = identity::start(source, &families).unwrap();
        tokio::task::spawn_local(keeping);
        let (mut applier, published, _) = applier(identity.clone());
        applier.take(upserts(MESH));
        assert_eq!(expected(&published).as_deref(), Some("spiffe://one/ns/shop/sa/default"));
        let (_updates, incoming) = mpsc::channel(1);
        let (_questions, asked) = mpsc::channel(1);
        let mut generations = published.subscribe();
        tokio::task::spawn_local(applier.run(incoming, asked));
        write(folder.path(), "two");
        identity.renew();
        let taken_up = async {
            while expected(&published).as_deref() != Some("spiffe://two/ns/shop/sa/default") {
                generations.changed().await.unwrap();
            }
        };
        assert!(tokio::time::timeout(PATIENCE, taken_up).await.is_ok());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn trust_is_kept_for_the_next_start_and_compiles_nothing() {
    let root = Authority::new("root");
    let bundle = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: TrustBundle\nmetadata: {{name: mesh, namespace: leno-system}}\n\
         spec:\n  trustDomain: cluster.local\n  signer: '{}'\n  roots:\n  - |\n    -----BEGIN CERTIFICATE-----\n    {}\n    \
         -----END CERTIFICATE-----\n",
        "0".repeat(64),
        STANDARD.encode(&root.certificate)
    );
    let (mut applier, published, _) = applier(Identity::none());
    applier.take(upserts(MESH));
    let generation = published.load().generation;
    applier.unsaved_since = None;
    applier.take(upserts(&bundle));
    assert_eq!(published.load().generation, generation);
    assert!(applier.unsaved_since.is_some());
    assert_eq!(applier.dump()["counts"]["TrustBundle"], 1);
}

#[tokio::test]
async fn a_policy_that_is_gone_has_no_figures() {
    let (mut applier, _published, families) = applier(Identity::none());
    applier.take(upserts(MESH));
    let denied = |families: &Families| {
        families
            .registry()
            .gather()
            .iter()
            .any(|family| family.name() == "leno_authorization_denied_total")
    };
    families.authorization_denied.with_label_values(&["shop/nobody"]).inc();
    assert!(denied(&families));
    let removed = items(MESH).iter().map(|item| item.resource.key()).collect();
    applier.take(Update::Changed(Change { removed, ..Change::default() }));
    assert!(!denied(&families));
}

/// Its scope is made late: by an exchange that holds the configuration from before, when it is too late.
#[tokio::test]
async fn an_endpoint_that_was_never_called_is_counted_for_its_heir_or_for_nobody() {
    let (mut applier, published, families) = applier(Identity::none());
    let endpoint =
        || published.load().service("orders").unwrap().ports[0].cluster.endpoints[0].clone();
    applier.take(upserts(MESH));
    let old = endpoint();
    applier.take(upserts(&MESH.replace("services: [orders]", "services: [orders], weight: 7")));
    let heir = endpoint();
    assert!(old.id != heir.id && Arc::ptr_eq(old.scope(), heir.scope()));
    let removed = items(MESH).iter().map(|item| item.resource.key()).collect();
    applier.take(Update::Changed(Change { removed, ..Change::default() }));
    families.tcp(old.scope()).opened.inc();
    let name = "istio_tcp_connections_opened_total";
    assert!(families.registry().gather().iter().all(|family| family.name() != name));
}
