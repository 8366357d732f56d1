//! Sets of fields, by the paths of their leaves.
//!
//! A leaf is a scalar, a list or an empty object. Lists are owned as a whole: an element of
//! `rules` or `ports` has no identity that would survive a reordering, and Gateway API declares
//! its lists atomic for the same reason.

use std::{collections::BTreeSet, ops::Bound};

use serde_json::{Map, Value};

/// The names from the object's root down to a field.
pub(super) type FieldPath = Vec<String>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet(BTreeSet<FieldPath>);

/// Fields below `metadata` that a user owns; the rest is identity or the server's.
const OWNED_METADATA: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];

impl FieldSet {
    /// Every field of an object that somebody can own.
    pub(super) fn of(object: &Value) -> Self {
        let mut set = Self::default();
        let Some(fields) = object.as_object() else { return set };
        for (name, value) in fields {
            match name.as_str() {
                "apiVersion" | "kind" | "status" => {}
                "metadata" => {
                    for owned in OWNED_METADATA {
                        if let Some(value) = value.get(owned) {
                            set.collect(vec![name.clone(), owned.to_owned()], value);
                        }
                    }
                }
                _ => set.collect(vec![name.clone()], value),
            }
        }
        set
    }

    fn collect(&mut self, path: FieldPath, value: &Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let mut below = path.clone();
                    below.push(name.clone());
                    self.collect(below, value);
                }
            }
            _ => drop(self.0.insert(path)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &FieldPath> {
        self.0.iter()
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&FieldPath) -> bool) {
        self.0.retain(keep);
    }

    pub(super) fn contains(&self, path: &[String]) -> bool {
        self.0.contains(path)
    }

    /// Whether the set has this field or one below it; the latter follow it in order.
    pub(super) fn reaches(&self, path: &[String]) -> bool {
        let from = (Bound::Included(path), Bound::Unbounded);
        self.0.range::<[String], _>(from).next().is_some_and(|next| next.starts_with(path))
    }

    /// Whether owning this set stands against somebody else's changing `path` of `object`.
    /// Owning an object without fields does not stand against fields being added to it.
    pub(super) fn stands_against(&self, path: &[String], object: &Value) -> bool {
        let solid =
            |above: &[String]| lookup(object, above).is_some_and(|value| !value.is_object());
        self.reaches(path) || above(path).any(|above| self.contains(above) && solid(above))
    }

    /// Whether somebody's changing these fields of `object` takes `own` away: the reverse of
    /// [`Self::stands_against`].
    pub(super) fn takes(&self, own: &[String], object: &Value) -> bool {
        self.contains(own)
            || above(own).any(|above| self.contains(above))
            || (self.reaches(own) && lookup(object, own).is_some_and(|value| !value.is_object()))
    }

    /// `{"f:spec": {"f:hosts": {}}}`.
    pub(super) fn to_json(&self) -> Value {
        let mut root = Map::new();
        for path in &self.0 {
            let mut at = &mut root;
            for name in path {
                let next = at.entry(format!("f:{name}")).or_insert_with(|| Map::new().into());
                let Value::Object(next) = next else { break };
                at = next;
            }
        }
        Value::Object(root)
    }

    /// Reads `fieldsV1`. Ownership of a list's elements (`k:`, `v:`, `i:`) counts as that of the list.
    pub(super) fn from_json(json: &Value) -> Result<Self, String> {
        let mut set = Self::default();
        set.read(&mut Vec::new(), json)?;
        Ok(set)
    }

    fn read(&mut self, path: &mut FieldPath, json: &Value) -> Result<(), String> {
        let fields = json.as_object().ok_or("fieldsV1 must consist of objects")?;
        let mut below = false;
        for (name, value) in fields {
            match name.split_once(':') {
                Some(("f", field)) => {
                    below = true;
                    path.push(field.to_owned());
                    self.read(path, value)?;
                    path.pop();
                }
                Some(("k" | "v" | "i", _)) => {}
                _ if name == "." => {}
                _ => {
                    return Err(format!("`{name}` is no field name of fieldsV1; write `f:{name}`"));
                }
            }
        }
        if !below && !path.is_empty() {
            self.0.insert(path.clone());
        }
        Ok(())
    }
}

/// The paths above a field.
fn above(path: &[String]) -> impl Iterator<Item = &[String]> {
    (1..path.len()).filter_map(|length| path.get(..length))
}

pub(super) fn lookup<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, name| at.get(name))
}

/// Removes a field, and the objects that this leaves empty, save the top level (`spec`) and those
/// that somebody wants though empty.
pub(super) fn remove(object: &mut Value, path: &[String], wanted: &impl Fn(&[String]) -> bool) {
    let Some((last, above)) = path.split_last() else { return };
    let parent = above.iter().try_fold(&mut *object, |at, name| at.get_mut(name));
    let Some(Value::Object(parent)) = parent else { return };
    parent.remove(last);
    if parent.is_empty() && above.len() > 1 && !wanted(above) {
        remove(object, above, wanted);
    }
}

/// `.spec.timeouts.request`, as Kubernetes prints it in conflicts.
pub(super) fn print(path: &[String]) -> String {
    path.iter().map(|name| format!(".{name}")).collect()
}
