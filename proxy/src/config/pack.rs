//! Resources as they are kept, made one after the other while they are read: a source may bring ten thousand at once, and
//! the trees that they are parsed from are many times as large. Pure.

use std::sync::Arc;

use leno_api::{Key, KindInfo, Resource, model::Model};

use super::text::Text;

/// What a resource means. Its metadata are in its text only.
#[derive(Clone, Debug)]
pub struct Meaning {
    /// What it is.
    pub kind: &'static KindInfo,
    /// What it says.
    pub model: Model,
}

impl Meaning {
    /// Kind, namespace and name.
    pub fn key(&self) -> Key {
        Key { kind: self.kind, name: self.model.name().clone() }
    }
}

impl From<Resource> for Meaning {
    fn from(resource: Resource) -> Self {
        Self { kind: resource.kind, model: resource.model }
    }
}

/// A resource with the text it was read from.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it means.
    pub resource: Meaning,
    /// Its JSON, as received.
    pub json: Text,
    /// Version on the wire; empty for files.
    pub version: Box<str>,
}

/// Makes items of what is read, each by how it differs from the one of its kind before it.
#[derive(Debug, Default)]
pub struct Packer {
    /// The last of each kind.
    before: Vec<(Meaning, Text)>,
}

impl Packer {
    /// Keeps of `resource`, which was read from `json`, what is not as in the one before.
    pub fn item(&mut self, resource: Resource, json: &str, version: &str) -> Item {
        let mut resource = Meaning::from(resource);
        let before = self.before.iter_mut().find(|(of, _)| std::ptr::eq(of.kind, resource.kind));
        let json = match &before {
            Some((sibling, text)) => {
                share(&mut resource.model, &sibling.model);
                Text::like(json, text)
            }
            None => json.into(),
        };
        let last = (resource.clone(), json.clone());
        match before {
            Some(before) => *before = last,
            None => self.before.push(last),
        }
        Item { resource, json, version: version.into() }
    }
}

/// Lets `model` have what it says as `sibling` does from there.
pub(super) fn share(model: &mut Model, sibling: &Model) {
    if let (Model::Workload(workload), Model::Workload(sibling)) = (model, sibling)
        && !Arc::ptr_eq(&workload.shape, &sibling.shape)
    {
        Arc::make_mut(workload).share(sibling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, service: &str) -> (Resource, String) {
        let json = format!(
            r#"{{"apiVersion":"leno.dev/v1alpha1","kind":"Workload","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{{"address":"10.0.0.1","ports":{{"http":80}},"services":["{service}"]}}}}"#
        );
        (Resource::from_json(serde_json::from_str(&json).unwrap()).unwrap(), json)
    }

    fn shape(item: &Item) -> &Arc<leno_api::model::workload::Shape> {
        match &item.resource.model {
            Model::Workload(workload) => &workload.shape,
            _ => panic!("no workload"),
        }
    }

    #[test]
    fn siblings_share_what_they_say_alike() {
        let mut packer = Packer::default();
        let mut pack = |name, service| {
            let (resource, json) = workload(name, service);
            let item = packer.item(resource, &json, "7");
            let mut whole = String::new();
            item.json.write(&mut whole);
            assert_eq!((whole, &*item.version), (json, "7"));
            item
        };
        let (one, two) = (pack("orders-1", "orders"), pack("orders-2", "orders"));
        assert!(Arc::ptr_eq(shape(&one), shape(&two)));
        let other = pack("users-1", "users");
        assert!(!Arc::ptr_eq(shape(&two), shape(&other)));
        assert!(Arc::ptr_eq(&shape(&two).ports, &shape(&other).ports));
        assert_eq!(other.resource.key().to_string(), "Workload shop/users-1");
    }

    /// Ten thousand wait together to be put in force.
    #[test]
    fn an_item_is_small() {
        assert!(size_of::<Item>() <= 80);
    }
}
