//! Objects in sets of which every proxy has some.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use leno_api::Key;

use super::Item;

/// An object in a set, found by its key. There is one for each object of each proxy: the key is in the object already.
#[derive(Clone, Debug)]
pub struct Held(pub Arc<Item>);

impl Borrow<Key> for Held {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Held {}
