//! The user's own root: path, permissions, reloading, garbage.

use rcgen::{BasicConstraints, CertifiedIssuer, DnType, IsCa, KeyUsagePurpose};

use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority_params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    issue::set_validity(&mut params, now() - 3 * 86_400, now() + days * 86_400);
    params
}

fn root(name: &str) -> Issuer {
    CertifiedIssuer::self_signed(authority_params(name, 100), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(root: &Issuer, days: i64) -> Issuer {
    let params = authority_params("intermediate", days);
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), root).unwrap()
}

fn files(directory: &Path) -> UserFiles {
    let file = |name: &str| directory.join(name);
    UserFiles { root: file("u-root.pem"), certificate: file("u-cert.pem"), key: file("u-key.pem") }
}

fn write(directory: &Path, roots: &[&Issuer], path: &[&Issuer]) {
    let files = files(directory);
    let pem = |all: &[&Issuer]| all.iter().map(|one| one.pem()).collect::<String>();
    fs::write(&files.root, pem(roots)).unwrap();
    fs::write(&files.certificate, pem(path)).unwrap();
    fs::write(&files.key, path[0].key().serialize_pem()).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
}

async fn open(directory: TempDir) -> Result<Mesh, Error> {
    let mut settings = settings(directory.path());
    settings.user = Some(files(directory.path()));
    let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let authority = Authority::open(settings, store.clone(), tokens.clone()).await?;
    Ok(Mesh { directory, store, tokens, authority })
}

async fn issued(mesh: &Mesh) -> IssueResponse {
    mesh.call(Call::new(Some(&mesh.token(|_| {})))).await.unwrap()
}

#[tokio::test]
async fn certificates_come_with_the_intermediates_and_without_the_root() {
    let directory = TempDir::new().unwrap();
    let (root, other) = (root("one"), root("two"));
    let upper = intermediate(&root, 90);
    let lower = intermediate(&upper, 80);
    write(directory.path(), &[&other, &root], &[&lower, &upper, &root]);
    let mesh = open(directory).await.unwrap();
    let response = issued(&mesh).await;
    let expected = [lower.der().to_vec(), upper.der().to_vec()];
    assert_eq!(response.chain[1..], expected);
    assert_eq!(
        response.signer,
        root::fingerprint(root.der()),
        "the root of the path, not the first"
    );
    assert!(verifies(&response, &[root.der().to_vec()]));
    assert!(!verifies(&response, &[other.der().to_vec()]));
    let status = mesh.authority.status(&Nobody);
    assert_eq!((status.source, status.step, status.roots.len()), ("files", None, 2));
    let refused = mesh.authority.rotate(Rotation::Add, true, &Nobody).await.unwrap_err();
    assert!(matches!(refused, RotateError::UserRoots(_)), "{refused}");
    assert!(!mesh.directory.path().join("ca/state.json").exists(), "no root of ours");
}

#[tokio::test]
async fn a_root_may_issue_itself() {
    let directory = TempDir::new().unwrap();
    let root = root("one");
    write(directory.path(), &[&root], &[&root]);
    let mesh = open(directory).await.unwrap();
    let response = issued(&mesh).await;
    assert_eq!(response.chain.len(), 1);
    assert!(verifies(&response, &response.roots));
}

#[tokio::test]
async fn files_that_do_not_belong_together_are_named() {
    let (one, two) = (root("one"), root("two"));
    let inner = intermediate(&one, 90);
    let ended = intermediate(&one, -1);
    let exposed = |files: &UserFiles| {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    };
    let swapped = |files: &UserFiles| {
        fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    };
    type Damage<'a> = &'a dyn Fn(&UserFiles);
    let cases: [(&[&Issuer], &Issuer, Damage<'_>, &str); 9] = [
        (&[&two], &inner, &|_| {}, "does not verify"),
        (&[&one], &ended, &|_| {}, "ends in 0 s"),
        (&[&inner], &two, &|_| {}, "does not verify"),
        (&[&one], &inner, &exposed, "chmod 600"),
        (&[&one], &inner, &swapped, "not the one of the issuing certificate"),
        (&[&one], &inner, &|files| fs::write(&files.root, "x").unwrap(), "u-root.pem"),
        (&[&one], &inner, &|files| fs::write(&files.certificate, "").unwrap(), "u-cert.pem"),
        (&[&one], &inner, &|files| fs::write(&files.key, "x").unwrap(), "u-key.pem"),
        (&[&one], &inner, &|files| fs::remove_file(&files.key).unwrap(), "u-key.pem"),
    ];
    for (roots, issuing, damage, says) in cases {
        let directory = TempDir::new().unwrap();
        write(directory.path(), roots, &[issuing]);
        damage(&files(directory.path()));
        let refused = open(directory).await.err().unwrap().to_string();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}

#[tokio::test]
async fn garbage_changes_nothing_and_good_files_take_over() {
    let directory = TempDir::new().unwrap();
    let (old, new) = (root("old"), root("new"));
    let (under_old, under_new) = (intermediate(&old, 90), intermediate(&new, 90));
    write(directory.path(), &[&old], &[&under_old]);
    let mesh = open(directory).await.unwrap();
    let path = mesh.directory.path().to_owned();
    let before = issued(&mesh).await;
    let reloads = |result: &str| mesh.authority.metrics.reloads.with_label_values(&[result]).get();
    let mut failures = 0;
    let garbage: [&dyn Fn(&UserFiles); 5] = [
        &|files| fs::write(&files.root, "garbage").unwrap(),
        &|files| fs::write(&files.certificate, &under_old.pem()[..300]).unwrap(),
        &|files| fs::write(&files.key, under_new.key().serialize_pem()).unwrap(),
        &|files| fs::remove_file(&files.certificate).unwrap(),
        &|files| fs::set_permissions(&files.key, fs::Permissions::from_mode(0o604)).unwrap(),
    ];
    for damage in garbage {
        damage(&files(&path));
        mesh.authority.tick().await;
        mesh.authority.tick().await;
        failures += 1;
        assert_eq!(reloads("failed"), failures, "each is complained about once");
        let still = issued(&mesh).await;
        assert_eq!((&still.signer, &still.roots), (&before.signer, &before.roots));
        write(&path, &[&old], &[&under_old]);
        mesh.authority.tick().await;
    }
    let good = reloads("ok");
    // The rotation of a user's root: trust both, then issue under the new, then trust it alone.
    write(&path, &[&old, &new], &[&under_old]);
    mesh.authority.tick().await;
    let both = issued(&mesh).await;
    assert_eq!((both.roots.len(), &both.signer), (2, &before.signer));
    write(&path, &[&old, &new], &[&under_new]);
    mesh.authority.tick().await;
    let after = issued(&mesh).await;
    assert_ne!(after.signer, before.signer);
    assert!(verifies(&after, &both.roots));
    write(&path, &[&new], &[&under_new]);
    mesh.authority.tick().await;
    assert_eq!(mesh.authority.bundle_pem().matches("BEGIN").count(), 1);
    assert_eq!(reloads("ok") - good, 3);
    let text = fs::read_to_string(path.join(ROOT_FILE)).unwrap();
    assert_eq!(text, mesh.authority.bundle_pem());
}

#[tokio::test]
async fn a_root_that_stands_twice_is_one() {
    let directory = TempDir::new().unwrap();
    let (one, two) = (root("one"), root("two"));
    write(directory.path(), &[&one, &two, &one], &[&one]);
    let mesh = open(directory).await.unwrap();
    let key = crate::store::Key::new("leno.dev", "trustbundles", "leno-system", "mesh");
    let mut bundle = mesh.store.get(&key).unwrap().json().unwrap();
    crate::objects::strip_revision(&mut bundle);
    // Proxies read what is stored: it must be valid, or none of them gets any root.
    leno_api::Resource::from_json(bundle.clone()).unwrap();
    assert_eq!(bundle["spec"]["roots"].as_array().unwrap().len(), 2);
}
