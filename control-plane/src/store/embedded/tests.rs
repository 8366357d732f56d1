//! The file: who may read it, what happens when it is damaged, newer or in use.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    super::{Expect, Key, OpenError, Selection, Store},
    EmbeddedStore,
    file::{FORMAT, META},
};

fn key(number: usize) -> Key {
    Key::new("leno.dev", "services", "shop", &format!("service-{number}"))
}

async fn fill(directory: &Path, count: usize) {
    let store = EmbeddedStore::open(directory).unwrap();
    for number in 0..count {
        let value = Bytes::from(format!("{{\"spec\": {{\"number\": {number}}}}}"));
        store.put(key(number), value, Expect::MustNotExist).await.unwrap();
    }
}

fn open_error(directory: &Path) -> OpenError {
    EmbeddedStore::open(directory).map(|_| ()).expect_err("it opened")
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_with_its_history() {
    let directory = TempDir::new().unwrap();
    fill(directory.path(), 20).await;
    let store = EmbeddedStore::open(directory.path()).unwrap();
    store.compact(15).await.unwrap();
    store.delete(key(3), Expect::Exists).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(directory.path()).unwrap();
    assert_eq!(store.revision(), 21);
    assert_eq!(store.list(&Selection::all()).items.len(), 19);
    assert_eq!(store.get(&key(7)).unwrap().modified, 8);
    let events = store.watch(15, Selection::all()).unwrap().next().await.unwrap().events;
    assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [16, 17, 18, 19, 20, 21]);
    assert!(store.watch(14, Selection::all()).is_err());
}

#[tokio::test]
async fn only_the_owner_may_read_the_file() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("new").join("data");
    fill(&directory, 1).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let file = directory.join("leno.redb");
    assert_eq!(mode(&file), 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    drop(EmbeddedStore::open(&directory).unwrap());
    assert_eq!(mode(&file), 0o600, "a file that others could read is closed to them");
}

#[tokio::test]
async fn a_truncated_file_is_refused_and_left_as_it_is() {
    let directory = TempDir::new().unwrap();
    fill(directory.path(), 200).await;
    let file = directory.path().join("leno.redb");
    let whole = fs::read(&file).unwrap();
    for percent in [0, 1, 5, 25, 50, 75, 90] {
        let part = &whole[..whole.len() * percent / 100];
        fs::write(&file, part).unwrap();
        let error = open_error(directory.path());
        assert!(matches!(error, OpenError::Damaged { .. }), "{percent} %: {error}");
        assert!(error.to_string().contains("restore it from a backup"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), part, "{percent} %: the file was changed");
    }
    fs::write(&file, &whole).unwrap();
    let store = EmbeddedStore::open(directory.path()).unwrap();
    assert_eq!(store.list(&Selection::all()).items.len(), 200);
}

#[test]
fn something_else_under_the_name_of_the_store_is_refused() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("leno.redb");
    let text = "kind: Service\n".repeat(1000);
    fs::write(&file, &text).unwrap();
    assert!(matches!(open_error(directory.path()), OpenError::Damaged { .. }));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let directory = TempDir::new().unwrap();
    fill(directory.path(), 1).await;
    let database = redb::Database::open(directory.path().join("leno.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open_error(directory.path());
    assert!(matches!(error, OpenError::Newer { found, .. } if found == FORMAT + 1), "{error}");
    assert!(error.to_string().contains("run that newer version"), "{error}");
}

#[tokio::test]
async fn two_stores_cannot_share_a_file() {
    let directory = TempDir::new().unwrap();
    let first = EmbeddedStore::open(directory.path()).unwrap();
    assert!(matches!(open_error(directory.path()), OpenError::InUse { .. }));
    first.put(key(1), Bytes::from("{}"), Expect::Any).await.unwrap();
    drop(first);
    assert_eq!(EmbeddedStore::open(directory.path()).unwrap().revision(), 1);
}

#[test]
fn a_data_directory_that_cannot_be_one_is_named() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open_error(&file.join("data"));
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    assert!(error.to_string().contains("--data-dir"), "{error}");
}

#[tokio::test]
async fn an_interrupted_first_start_does_not_hinder_the_next() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("leno.redb.new"), "half a fi").unwrap();
    fill(directory.path(), 1).await;
    assert!(!directory.path().join("leno.redb.new").exists());
}
