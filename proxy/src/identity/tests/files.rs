//! Files that change, in all the ways in which files do.

use std::os::unix::fs::PermissionsExt;

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use super::*;

struct Folder(TempDir);

impl Folder {
    fn new(root: &Authority, account: &str) -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.write(root, account);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The three files in three steps, as nobody should do it.
    fn write(&self, root: &Authority, account: &str) {
        let material = root.material_of(&wanted(&spiffe(account), 3600));
        std::fs::write(self.path("cert.pem"), pem(&material.chain[0])).unwrap();
        self.write_key(&key_pem(material.key.secret_der()));
        std::fs::write(self.path("roots.pem"), pem(&root.certificate)).unwrap();
    }

    fn write_key(&self, text: &str) {
        std::fs::write(self.path("key.pem"), text).unwrap();
        self.mode(0o600);
    }

    fn mode(&self, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path("key.pem"), permissions).unwrap();
    }

    fn files(&self) -> Files {
        Files {
            certificate: self.path("cert.pem"),
            key: self.path("key.pem"),
            roots: self.path("roots.pem"),
        }
    }

    fn start(&self) -> Result<Arc<Identity>, String> {
        let started = start(Source::Files(self.files()), &families());
        let (identity, task) = started.map_err(|error| error.to_string())?;
        tokio::spawn(task);
        Ok(identity)
    }
}

fn key_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

fn account(identity: &Identity) -> String {
    identity.current().unwrap().id().service_account.to_string()
}

/// Changes are found without being told; being told saves the test some seconds.
async fn becomes(identity: &Identity, wanted: &str) {
    identity.renew();
    until(wanted, || account(identity) == wanted).await;
}

async fn fails(identity: &Identity, message: &str) {
    identity.renew();
    until(message, || identity.status().last_error.is_some_and(|e| e.contains(message))).await;
}

#[tokio::test]
async fn files_are_read_at_start_and_when_they_change() {
    let root = Authority::new("root");
    let folder = Folder::new(&root, "orders");
    let identity = folder.start().unwrap();
    assert_eq!(account(&identity), "orders");
    assert_eq!(identity.trust_domain().unwrap().as_str(), "cluster.local");
    folder.write(&root, "users");
    // Nobody asks for it here.
    until("the new files", || account(&identity) == "users").await;
    assert_eq!(identity.status().renewals, 2);
    // Roots that come with the files are not replaced by somebody's bundle.
    let before = identity.current().unwrap().generation();
    let other = Authority::new("other");
    let bundle = TrustBundle {
        name: leno_api::model::ObjectName::new("leno-system", "mesh"),
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        roots: vec![other.certificate.to_vec().into()],
        signer: String::new(),
    };
    identity.trust(&bundle).unwrap();
    assert_eq!(identity.current().unwrap().generation(), before);
}

#[tokio::test]
async fn a_change_in_steps_is_used_when_it_is_complete() {
    let root = Authority::new("root");
    let folder = Folder::new(&root, "orders");
    let identity = folder.start().unwrap();
    let next = root.material_of(&wanted(&spiffe("users"), 3600));
    std::fs::write(folder.path("cert.pem"), pem(&next.chain[0])).unwrap();
    fails(&identity, "certificate and key").await;
    assert_eq!(account(&identity), "orders");
    folder.write_key(&key_pem(next.key.secret_der())[..100]);
    fails(&identity, "holds no private key").await;
    folder.write_key(&key_pem(next.key.secret_der()));
    becomes(&identity, "users").await;
    assert_eq!(identity.status().last_error, None);
}

#[tokio::test]
async fn garbage_changes_nothing() {
    let root = Authority::new("root");
    let folder = Folder::new(&root, "orders");
    let identity = folder.start().unwrap();
    let garbage = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
    for (file, text, message) in [
        ("cert.pem", garbage, "cert.pem"),
        ("roots.pem", "", "roots.pem holds no certificate"),
        ("key.pem", garbage, "holds no private key"),
    ] {
        let good = std::fs::read(folder.path(file)).unwrap();
        std::fs::write(folder.path(file), text).unwrap();
        fails(&identity, message).await;
        std::fs::remove_file(folder.path(file)).unwrap();
        fails(&identity, "cannot be read").await;
        std::fs::write(folder.path(file), good).unwrap();
        folder.mode(0o600);
        // The old files are back: nothing is wrong any more.
        identity.renew();
        until("all is well", || identity.status().last_error.is_none()).await;
        assert_eq!(account(&identity), "orders");
    }
    let long = "x".repeat(2 << 20);
    std::fs::write(folder.path("roots.pem"), long).unwrap();
    fails(&identity, "it has more than").await;
    std::fs::write(folder.path("roots.pem"), pem(&Authority::new("other").certificate)).unwrap();
    fails(&identity, "leads to none of the roots").await;
    assert_eq!(identity.status().renewals, 1);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    let root = Authority::new("root");
    let folder = Folder::new(&root, "orders");
    for mode in [0o644, 0o640, 0o604, 0o660] {
        folder.mode(mode);
        let error = folder.start().unwrap_err();
        let advice =
            format!("(mode {mode:04o}): run `chmod 600 {}`", folder.path("key.pem").display());
        assert!(error.contains(&advice), "{error}");
    }
    folder.mode(0o400);
    let identity = folder.start().unwrap();
    folder.mode(0o644);
    fails(&identity, "chmod 600").await;
    assert_eq!(account(&identity), "orders");
}

#[tokio::test]
async fn symlinks_are_followed_anew() {
    let root = Authority::new("root");
    let (first, second) = (Folder::new(&root, "orders"), Folder::new(&root, "users"));
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("..data");
    std::os::unix::fs::symlink(first.0.path(), &data).unwrap();
    let files = Files {
        certificate: data.join("cert.pem"),
        key: data.join("key.pem"),
        roots: data.join("roots.pem"),
    };
    let (identity, task) = start(Source::Files(files), &families()).unwrap();
    tokio::spawn(task);
    assert_eq!(account(&identity), "orders");
    // As Kubernetes does it: a new link is renamed over the old one.
    let new = folder.path().join("..data_tmp");
    std::os::unix::fs::symlink(second.0.path(), &new).unwrap();
    std::fs::rename(new, data).unwrap();
    becomes(&identity, "users").await;
}

#[tokio::test]
async fn errors_at_start_name_the_file_and_never_its_content() {
    let root = Authority::new("root");
    let folder = Folder::new(&root, "orders");
    let secret = std::fs::read_to_string(folder.path("key.pem")).unwrap();
    // A key without its last lines, on one line, with a label of another kind.
    let broken = [
        secret[..secret.len() - 30].to_owned(),
        secret.replace('\n', ""),
        secret.replace("PRIVATE KEY", "CERTIFICATE"),
        secret.replace("-----BEGIN", "----BEGIN"),
    ];
    let part = &secret[60..100];
    for text in broken {
        folder.write_key(&text);
        let error = folder.start().unwrap_err();
        assert!(error.contains("key.pem") && !error.contains(part), "{error}");
        let numbers: Vec<_> = part.bytes().take(4).map(|byte| byte.to_string()).collect();
        assert!(!error.contains(&numbers.join(", ")), "{error}");
    }
    std::fs::write(folder.path("cert.pem"), &secret).unwrap();
    assert!(folder.start().unwrap_err().contains("cert.pem"));
}
