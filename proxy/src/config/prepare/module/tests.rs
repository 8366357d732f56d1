use std::path::Path;

use leno_api::{Resource, model::Model};
use serde_json::json;

use super::*;
use crate::http::fetch::tests::{Server, ok};

fn plugin(url: &str, sha256: Option<&[u8]>) -> Arc<WasmPlugin> {
    let mut object = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin",
        "metadata": {"name": "tag", "namespace": "shop"}, "spec": {"url": url},
    });
    if let Some(module) = sha256 {
        object["spec"]["sha256"] = hex(&digest_of(module)).into();
    }
    match Resource::from_json(object).unwrap().model {
        Model::WasmPlugin(plugin) => plugin,
        other => panic!("{other:?}"),
    }
}

fn modules(folder: &Path) -> Modules {
    Modules::new(Store::new(Some(folder.to_owned())))
}

#[tokio::test]
async fn a_file_is_read_as_it_is_now_and_kept_for_when_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tag.wasm");
    fs::write(&path, "one").unwrap();
    let spec = plugin(&format!("file://{}", path.display()), None);
    let modules = modules(&folder.path().join("kept"));
    assert_eq!(modules.get(&spec, false).await.unwrap().bytes, "one");
    let before = stamp(&spec).await;
    fs::write(&path, "other").unwrap();
    assert_ne!(stamp(&spec).await, before);
    let module = modules.get(&spec, false).await.unwrap();
    assert_eq!((&*module.bytes, module.digest), (&b"other"[..], digest_of(b"other")));
    fs::remove_file(&path).unwrap();
    let error = modules.get(&spec, false).await.unwrap_err();
    assert!(
        error.contains("cannot be fetched from file:///") && error.contains("No such file"),
        "{error}"
    );
    assert_eq!(modules.get(&spec, true).await.unwrap().bytes, "other");
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe.wasm");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let modules = modules(&folder.path().join("kept"));
    for path in [&*path, folder.path(), Path::new("/dev/zero")] {
        let spec = plugin(&format!("file://{}", path.display()), None);
        let error = modules.get(&spec, false).await.unwrap_err();
        assert!(error.contains("it is not a file"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_another_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let make = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        path
    };
    // As images and volumes are made: everything has the same time, and links lead to what is valid.
    let (one, two) = (make("one.wasm", "1"), make("two.wasm", "2"));
    let link = folder.path().join("link.wasm");
    let spec = plugin(&format!("file://{}", link.display()), None);
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let before = stamp(&spec).await;
    assert_eq!(stamp(&spec).await, before);
    let aside = folder.path().join("aside");
    std::os::unix::fs::symlink(&two, &aside).unwrap();
    fs::rename(&aside, &link).unwrap();
    assert_ne!(stamp(&spec).await, before);
}

#[tokio::test]
async fn a_file_that_nobody_has_touched_need_not_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tag.wasm");
    fs::write(&path, "one").unwrap();
    let spec = plugin(&format!("file://{}", path.display()), None);
    let modules = modules(&folder.path().join("kept"));
    modules.get(&spec, false).await.unwrap();
    assert_eq!(modules.digest(&spec).await, None, "it might be written in the same moment");
    let (state, digest) = (stamp(&spec).await, digest_of(b"one"));
    let later = SystemTime::now() + Duration::from_secs(60);
    modules.remember(&spec, state, digest, later).await;
    assert_eq!(modules.digest(&spec).await, Some(digest));
    // Its time says nothing.
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "another").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    assert_eq!(modules.digest(&spec).await, None);
    modules.remember(&spec, state, digest, later).await;
    assert_eq!(modules.digest(&spec).await, None, "it was another one when it was read");
    fs::remove_file(&path).unwrap();
    assert_eq!(modules.digest(&spec).await, None);
}

#[tokio::test]
async fn what_is_known_by_its_digest_is_fetched_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(ok("module")).await;
    let spec = plugin(&format!("{}/tag.wasm", server.url), Some(b"module"));
    for _ in 0..2 {
        assert_eq!(modules(folder.path()).get(&spec, true).await.unwrap().bytes, "module");
    }
    assert_eq!(server.hits(), 1);
    // Its configuration does not matter, nor where it is now.
    let elsewhere = plugin("https://nowhere.invalid/tag.wasm", Some(b"module"));
    assert_eq!(modules(folder.path()).get(&elsewhere, true).await.unwrap().bytes, "module");
}

#[tokio::test]
async fn another_module_than_the_one_meant_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(ok("other")).await;
    let spec = plugin(&format!("{}/tag.wasm", server.url), Some(b"module"));
    let modules = modules(folder.path());
    let error = modules.get(&spec, true).await.unwrap_err();
    let (found, wanted) = (hex(&digest_of(b"other")), hex(&digest_of(b"module")));
    assert!(error.contains(&format!("it has the sha256 {found}, not {wanted}")), "{error}");
    server.answer(Some(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()));
    let error = modules.get(&spec, true).await.unwrap_err();
    assert!(error.contains("answered with 503"), "{error}");
    // Nothing of it is kept.
    assert!(modules.store.module(&digest_of(b"other")).is_none());
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tag.wasm");
    let length = MAX_MODULE_BYTES as u64 + 1;
    fs::File::create(&path).unwrap().set_len(length).unwrap();
    let spec = plugin(&format!("file://{}", path.display()), None);
    let error = Modules::new(Store::default()).get(&spec, true).await.unwrap_err();
    assert!(error.contains("more than 67108864 bytes"), "{error}");
}

#[tokio::test]
async fn only_files_that_may_change_are_looked_at() {
    assert_eq!(stamp(&plugin("file:///nowhere", None)).await, Some(Stamp(None)));
    assert_eq!(stamp(&plugin("file:///nowhere", Some(b"x"))).await, None);
    assert_eq!(stamp(&plugin("oci://localhost/tag:v1", None)).await, None);
}

/// Fetching may take longer than a file takes to settle; what was written while that began may be written again.
#[tokio::test]
async fn a_file_that_was_new_when_it_was_looked_at_is_not_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tag.wasm");
    let spec = plugin(&format!("file://{}", path.display()), None);
    let modules = modules(&folder.path().join("kept"));
    let permits = modules.permits.acquire_many(MAX_FETCHES.try_into().unwrap()).await.unwrap();
    fs::write(&path, "one").unwrap();
    let settled = async {
        while !stamp(&spec).await.unwrap().is_settled(SystemTime::now()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(permits);
    };
    let (module, ()) = tokio::join!(modules.get(&spec, false), settled);
    assert_eq!(module.unwrap().bytes, "one");
    assert_eq!(modules.digest(&spec).await, None);
}
