//! The `TrustBundle` in the store: how the roots travel, and how one knows who has them.

use std::time::SystemTime;

use leno_api::{LENO_GROUP, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use super::{Error, root::Trust};
use crate::{
    objects::{self, Author, timestamp},
    store::{self, Expect, Key, Store},
};

/// Its name in the system namespace.
pub const NAME: &str = "mesh";
const PLURAL: &str = "trustbundles";
const MANAGER: &str = "leno-ca";
/// How often a write is tried again when its status is written at the same time.
const ATTEMPTS: usize = 10;

/// Brings the stored bundle to what is trusted; says its `metadata.generation`.
///
/// # Errors
/// When the store cannot be written.
pub async fn publish(store: &dyn Store, trust_domain: &str, trust: &Trust) -> Result<u64, Error> {
    let bundle = bundle(trust_domain, trust);
    let mut attempts = 0;
    loop {
        attempts += 1;
        match write(store, &bundle).await {
            Err(Error::Store(store::Error::Conflict { .. })) if attempts < ATTEMPTS => {}
            written => return written,
        }
    }
}

async fn write(store: &dyn Store, bundle: &Value) -> Result<u64, Error> {
    let author = Author { manager: MANAGER.into(), now: timestamp::rfc3339(SystemTime::now()) };
    let failed = |error: objects::Error| Error::Bundle(error.to_string());
    let (object, expect) = match store.get(&key()) {
        None => {
            let uid = objects::uid(rand::random());
            let object = objects::created(bundle.clone(), &author, &uid).map_err(failed)?;
            (object, Expect::MustNotExist)
        }
        Some(stored) => {
            let mut live = stored.json()?;
            objects::strip_revision(&mut live);
            let object = objects::updated(&live, bundle.clone(), &author).map_err(failed)?;
            if object == live {
                return generation(&live);
            }
            (object, Expect::Exactly(stored.modified))
        }
    };
    store.put(key(), object.to_string().into(), expect).await?;
    generation(&object)
}

fn bundle(trust_domain: &str, trust: &Trust) -> Value {
    let roots: Vec<String> =
        trust.roots.iter().map(|root| super::pem("CERTIFICATE", &root.der)).collect();
    json!({
        "apiVersion": format!("{LENO_GROUP}/v1alpha1"),
        "kind": "TrustBundle",
        "metadata": {"name": NAME, "namespace": SYSTEM_NAMESPACE},
        "spec": {"trustDomain": trust_domain, "roots": roots, "signer": trust.signer.root},
    })
}

fn key() -> Key {
    Key::new(LENO_GROUP, PLURAL, SYSTEM_NAMESPACE, NAME)
}

fn generation(object: &Value) -> Result<u64, Error> {
    let generation = object.get("metadata").and_then(|metadata| metadata.get("generation"));
    let generation = generation.and_then(Value::as_u64);
    generation.ok_or_else(|| Error::Bundle("it has no generation".into()))
}
