//! `metadata.managedFields`: who owns which field.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    Author, Error,
    fields::{self, FieldPath, FieldSet},
};

/// Beyond this many managers by update, the oldest are merged into one, as Kubernetes does.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Most managers by apply; each apply with a new name adds one, for ever.
const MAX_APPLY_MANAGERS: usize = 100;
const MERGED: &str = "ancient-changes";
const BEFORE: &str = "before-first-apply";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Apply,
    Update,
}

#[derive(Debug, Clone, PartialEq)]
struct Manager {
    name: String,
    way: Way,
    api_version: String,
    subresource: Option<String>,
    time: String,
    fields: FieldSet,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ownership(Vec<Manager>);

/// A field that an apply would change though somebody else owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    pub api_version: String,
    /// `.spec.hosts`
    pub field: String,
}

impl Conflict {
    pub fn message(&self) -> String {
        format!("conflict with {:?} using {}", self.manager, self.api_version)
    }
}

impl Ownership {
    /// Of a stored object.
    pub(super) fn of(object: &Value) -> Result<Self, Error> {
        Self::parse(super::metadata(object).and_then(|metadata| metadata.get("managedFields")))
    }

    pub(super) fn parse(list: Option<&Value>) -> Result<Self, Error> {
        let Some(list) = list else { return Ok(Self::default()) };
        let list = list.as_array().ok_or_else(|| invalid("must be a list"))?;
        let filled = list.iter().filter(|entry| !entry.as_object().is_some_and(|e| e.is_empty()));
        filled.map(manager).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn to_json(&self) -> Value {
        self.0.iter().map(Manager::to_json).collect()
    }

    /// Somebody wrote the whole object: what changed is theirs from now on.
    pub(super) fn after_update(&mut self, before: Option<&Value>, after: &Value, author: &Author) {
        let mut changed = FieldSet::of(after);
        if let Some(before) = before {
            changed.retain(|path| fields::lookup(before, path) != fields::lookup(after, path));
        }
        for manager in &mut self.0 {
            manager
                .fields
                .retain(|own| fields::lookup(after, own).is_some() && !changed.takes(own, after));
        }
        if !changed.is_empty() {
            self.own(author, Way::Update, after, changed);
        }
        self.tidy();
    }

    /// The fields of an apply that others own and that it would change.
    pub(super) fn conflicts(
        &self,
        live: &Value,
        config: &Value,
        applied: &FieldSet,
        name: &str,
    ) -> Vec<Conflict> {
        let mut found = Vec::new();
        for path in applied.iter().filter(|path| changes(live, config, path)) {
            for other in self.0.iter().filter(|other| !other.is(name, Way::Apply)) {
                if other.fields.stands_against(path, live) {
                    found.push(Conflict {
                        manager: other.name.clone(),
                        api_version: other.api_version.clone(),
                        field: fields::print(path),
                    });
                }
            }
        }
        found
    }

    /// Takes what an apply changes away from everybody else.
    pub(super) fn take(&mut self, live: &Value, config: &Value, applied: &FieldSet, name: &str) {
        let mut changing = applied.clone();
        changing.retain(|path| changes(live, config, path));
        for other in self.0.iter_mut().filter(|other| !other.is(name, Way::Apply)) {
            other.fields.retain(|own| !changing.takes(own, live));
        }
    }

    /// What an applier owned and no longer mentions, and nobody else owns: to be removed.
    pub(super) fn abandoned(&self, applied: &FieldSet, name: &str) -> Vec<FieldPath> {
        let own = self.0.iter().filter(|manager| manager.is(name, Way::Apply));
        let gone = own.flat_map(|manager| manager.fields.iter()).filter(|path| {
            let others = self.0.iter().filter(|other| !other.is(name, Way::Apply));
            !applied.reaches(path) && !others.into_iter().any(|other| other.fields.reaches(path))
        });
        gone.cloned().collect()
    }

    /// Whether someone owns exactly this field.
    pub(super) fn contains(&self, path: &[String]) -> bool {
        self.0.iter().any(|manager| manager.fields.contains(path))
    }

    /// What an apply mentions is the applier's, and nothing else is.
    pub(super) fn after_apply(
        &mut self,
        after: &Value,
        applied: FieldSet,
        author: &Author,
    ) -> Result<(), Error> {
        let own = self.0.iter_mut().find(|manager| manager.is(&author.manager, Way::Apply));
        let version = api_version(after);
        match own {
            Some(own) if own.fields == applied && own.api_version == version => {}
            Some(own) => {
                own.fields = applied;
                own.api_version = version;
                own.time.clone_from(&author.now);
            }
            None => self.own(author, Way::Apply, after, applied),
        }
        for manager in &mut self.0 {
            manager.fields.retain(|own| fields::lookup(after, own).is_some());
        }
        self.tidy();
        let appliers = self.0.iter().filter(|manager| manager.way == Way::Apply).count();
        if appliers > MAX_APPLY_MANAGERS {
            return Err(invalid(&format!(
                "{appliers} managers apply this object, at most {MAX_APPLY_MANAGERS} can: use one --field-manager"
            )));
        }
        Ok(())
    }

    /// An object from before anyone's ownership was recorded belongs to a manager of its own.
    pub(super) fn assume_earlier_owner(&mut self, live: &Value, now: &str) {
        if self.0.is_empty() {
            let author = Author { manager: BEFORE.into(), now: now.into() };
            self.own(&author, Way::Update, live, FieldSet::of(live));
        }
    }

    fn own(&mut self, author: &Author, way: Way, object: &Value, fields: FieldSet) {
        let own = self.0.iter_mut().find(|manager| manager.is(&author.manager, way));
        match own {
            Some(own) => {
                own.fields.extend(fields);
                own.api_version = api_version(object);
                own.time.clone_from(&author.now);
            }
            None => self.0.push(Manager {
                name: author.manager.clone(),
                way,
                api_version: api_version(object),
                subresource: None,
                time: author.now.clone(),
                fields,
            }),
        }
    }

    /// Drops managers that own nothing, and merges the oldest where there are too many.
    fn tidy(&mut self) {
        // An applier of nothing still is one: its next apply must know what it had.
        self.0.retain(|manager| manager.way == Way::Apply || !manager.fields.is_empty());
        while self.0.iter().filter(|manager| manager.way == Way::Update).count()
            > MAX_UPDATE_MANAGERS
        {
            let updates = self.0.iter().enumerate().filter(|(_, m)| m.way == Way::Update);
            let unmerged = updates.filter(|(_, manager)| manager.name != MERGED);
            let Some((oldest, _)) = unmerged.min_by(|(_, a), (_, b)| a.time.cmp(&b.time)) else {
                return;
            };
            let oldest = self.0.remove(oldest);
            match self.0.iter_mut().find(|manager| manager.is(MERGED, Way::Update)) {
                Some(merged) => {
                    merged.fields.extend(oldest.fields);
                    merged.time = oldest.time;
                }
                None => self.0.push(Manager { name: MERGED.into(), ..oldest }),
            }
        }
    }
}

/// Whether setting `path` as in `config` changes `live`. Asking for an empty object where there is
/// any object asks for nothing.
fn changes(live: &Value, config: &Value, path: &FieldPath) -> bool {
    let (now, wanted) = (fields::lookup(live, path), fields::lookup(config, path));
    now != wanted && !(now.is_some_and(Value::is_object) && wanted.is_some_and(Value::is_object))
}

fn api_version(object: &Value) -> String {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Manager {
    /// Subresources have managers of their own; nothing here writes as one.
    fn is(&self, name: &str, way: Way) -> bool {
        self.name == name && self.way == way && self.subresource.is_none()
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.name,
            "operation": match self.way { Way::Apply => "Apply", Way::Update => "Update" },
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if let (Some(subresource), Some(entry)) = (&self.subresource, entry.as_object_mut()) {
            entry.insert("subresource".into(), subresource.clone().into());
        }
        entry
    }
}

fn manager(entry: &Value) -> Result<Manager, Error> {
    let text = |name: &str| match entry.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(invalid(&format!("{name} must be a string"))),
    };
    let way = match text("operation")?.as_str() {
        "Apply" => Way::Apply,
        "Update" => Way::Update,
        other => return Err(invalid(&format!("operation must be Apply or Update, not {other:?}"))),
    };
    let fields = entry.get("fieldsV1").map(FieldSet::from_json).transpose();
    Ok(Manager {
        name: text("manager")?,
        way,
        api_version: text("apiVersion")?,
        subresource: Some(text("subresource")?).filter(|name| !name.is_empty()),
        time: text("time")?,
        fields: fields.map_err(|message| invalid(&message))?.unwrap_or_default(),
    })
}

fn invalid(message: &str) -> Error {
    Error::Invalid { path: "metadata.managedFields", message: message.to_owned() }
}

/// As Kubernetes words it; kubectl shows this text and adds advice of its own.
pub(super) fn describe(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message(), only.field);
    }
    let mut text = format!("Apply failed with {} conflicts:", conflicts.len());
    for conflict in conflicts {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n- {}: {}", conflict.message(), conflict.field);
    }
    text
}
