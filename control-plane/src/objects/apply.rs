//! Server-side apply: each applier states the fields it cares about; the server merges, keeps
//! what others own, and removes what an applier no longer states.

use serde_json::Value;

use super::{
    Author, Error,
    fields::{self, FieldSet},
    metadata_mut,
    ownership::Ownership,
    revise,
};

/// The object after `config` was applied by `author`; equal to `live` where nothing changes.
///
/// # Errors
/// [`Error::Conflicts`] where others own fields that would change, unless `force`d.
pub fn applied(
    live: Option<&Value>,
    mut config: Value,
    author: &Author,
    force: bool,
    uid: &str,
) -> Result<Value, Error> {
    revise::drop_server_fields(&mut config);
    let stated = FieldSet::of(&config);
    let Some(live) = live else {
        let mut object = revise::identified(config, author, uid);
        let mut ownership = Ownership::default();
        ownership.after_apply(&object, stated, author)?;
        set_ownership(&mut object, &ownership);
        return Ok(object);
    };
    let mut ownership = Ownership::of(live)?;
    ownership.assume_earlier_owner(live, &author.now);
    let conflicts = ownership.conflicts(live, &config, &stated, &author.manager);
    if !conflicts.is_empty() && !force {
        return Err(Error::Conflicts(conflicts));
    }
    ownership.take(live, &config, &stated, &author.manager);
    let mut object = live.clone();
    for path in ownership.abandoned(&stated, &author.manager) {
        fields::remove(&mut object, &path, &|emptied| ownership.contains(emptied));
    }
    merge(&mut object, config);
    ownership.after_apply(&object, stated, author)?;
    set_ownership(&mut object, &ownership);
    revise::raise_generation(live, &mut object);
    Ok(object)
}

pub(super) fn set_ownership(object: &mut Value, ownership: &Ownership) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert("managedFields".into(), ownership.to_json());
    }
}

/// Objects are merged field by field, all else is replaced.
fn merge(object: &mut Value, config: Value) {
    match (object, config) {
        (Value::Object(object), Value::Object(config)) => {
            for (name, value) in config {
                match object.get_mut(&name) {
                    Some(field) => merge(field, value),
                    None => drop(object.insert(name, value)),
                }
            }
        }
        (object, config) => *object = config,
    }
}
