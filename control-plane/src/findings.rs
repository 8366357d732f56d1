//! What is odd about resources beside each other: references to nothing, collisions, what has no effect. One index of all
//! resources as parsed, which follows the store, so that a write costs what those cost that have to do with it, and not what
//! the whole mesh does. Said as warnings to whoever writes, and in the status of what is stored.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use leno_api::{Key as ResourceKey, Resource, SYSTEM_NAMESPACE, analyze, model::Model};

use crate::store::{Change, Error, Key, Selection, Store, Stored, Watch};

/// The findings about everything that is stored.
pub struct Findings {
    store: Arc<dyn Store>,
    index: Mutex<Option<Index>>,
}

/// What is odd about one resource: `spec.rules[0]`, and what it means.
pub type Said = Vec<(String, String)>;

/// The hash of what is claimed. Two that collide are compared for nothing, no more.
type Place = u64;

struct Index {
    watch: Watch,
    resources: HashMap<Key, Resource>,
    by_claim: HashMap<Place, HashSet<Key>>,
    /// Who refers to a resource, whether it is there or not.
    by_referent: HashMap<Key, HashSet<Key>>,
    /// How many policies read tokens, by namespace.
    token_readers: HashMap<Arc<str>, usize>,
    /// Of these something else may be odd than when they were last looked at.
    stirred: HashSet<Key>,
}

impl std::fmt::Debug for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Findings").finish_non_exhaustive()
    }
}

impl Findings {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, index: Mutex::default() })
    }

    /// About resources that are to be written together and see each other, in their order.
    pub fn about(&self, resources: &[&Resource]) -> Vec<Said> {
        let beside = self.look(|index| (index.beside(resources), index.without_tokens(resources)));
        let (mut all, without_tokens) = beside.unwrap_or_else(|error| {
            tracing::warn!(%error, "resources are checked on their own, not beside the others");
            Default::default()
        });
        all.extend(resources.iter().map(|resource| (*resource).clone()));
        let mut found = by_resource(&all, without_tokens);
        resources.iter().map(|resource| found.remove(&resource.key()).unwrap_or_default()).collect()
    }

    /// About what is stored under `key`; `None` where nothing is.
    ///
    /// # Errors
    /// Of the store.
    pub fn of(&self, key: &Key) -> Result<Option<Said>, Error> {
        self.look(|index| index.of(key))
    }

    /// Stored resources of which something else may be odd since this was last asked: `most` of them at a time, and all
    /// that there are at first.
    ///
    /// # Errors
    /// Of the store.
    pub fn stirred(&self, most: usize) -> Result<Vec<Key>, Error> {
        self.look(|index| index.take_stirred(most))
    }

    /// Looks at all resources as they are now.
    fn look<T>(&self, look: impl FnOnce(&mut Index) -> T) -> Result<T, Error> {
        let mut kept = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match kept.take() {
            Some(mut index) => {
                index.follow().map(|()| index).or_else(|_| Index::read(&*self.store))
            }
            None => Index::read(&*self.store),
        };
        Ok(look(kept.insert(current?)))
    }
}

impl Index {
    fn read(store: &dyn Store) -> Result<Self, Error> {
        let listing = store.list(&Selection::all());
        let mut index = Self {
            watch: store.watch(listing.revision, Selection::all())?,
            resources: HashMap::new(),
            by_claim: HashMap::new(),
            by_referent: HashMap::new(),
            token_readers: HashMap::new(),
            stirred: HashSet::new(),
        };
        listing.items.iter().for_each(|stored| index.put(stored));
        Ok(index)
    }

    fn follow(&mut self) -> Result<(), Error> {
        while let Some(batch) = self.watch.ready()? {
            for event in &batch.events {
                match event.change {
                    Change::Created | Change::Updated => self.put(&event.object),
                    Change::Deleted => self.remove(&event.object.key),
                    Change::StatusWritten => {}
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, stored: &Stored) {
        self.remove(&stored.key);
        let Some(resource) = parse(stored) else { return };
        let places = places(&resource);
        self.stir(&stored.key, &places);
        for place in places {
            self.by_claim.entry(place).or_default().insert(stored.key.clone());
        }
        for referent in referents(&resource) {
            self.by_referent.entry(referent).or_default().insert(stored.key.clone());
        }
        self.count_token_readers(&resource, |count| count + 1);
        self.resources.insert(stored.key.clone(), resource);
    }

    fn remove(&mut self, key: &Key) {
        let Some(resource) = self.resources.remove(key) else { return };
        let places = places(&resource);
        self.stir(key, &places);
        self.stirred.remove(key);
        self.count_token_readers(&resource, |count| count.saturating_sub(1));
        for place in &places {
            forget(&mut self.by_claim, place, key);
        }
        for referent in referents(&resource) {
            forget(&mut self.by_referent, &referent, key);
        }
    }

    /// With the resource go those that claim the same `places`, and those that refer to it.
    fn stir(&mut self, key: &Key, places: &HashSet<Place>) {
        self.stirred.insert(key.clone());
        for place in places {
            self.stirred.extend(self.by_claim.get(place).into_iter().flatten().cloned());
        }
        self.stirred.extend(self.by_referent.get(key).into_iter().flatten().cloned());
    }

    /// With the first that reads tokens, and with the last, rules that ask for them mean something else.
    fn count_token_readers(&mut self, resource: &Resource, count: impl FnOnce(usize) -> usize) {
        if !reads_tokens(resource) {
            return;
        }
        let namespace = resource.name().namespace;
        let before = self.token_readers.remove(&namespace).unwrap_or_default();
        let now = count(before);
        if now > 0 {
            self.token_readers.insert(namespace.clone(), now);
        }
        if (before == 0) != (now == 0) {
            let concerned = self.resources.iter().filter(|(_, other)| {
                let places = [&*namespace, &*other.name().namespace];
                matches!(other.model, Model::AuthorizationPolicy(_))
                    && (places.contains(&SYSTEM_NAMESPACE) || places[0] == places[1])
            });
            self.stirred.extend(concerned.map(|(key, _)| key.clone()));
        }
    }

    /// Rules that ask for tokens where nobody reads any, neither before nor with what is written.
    fn without_tokens(&self, resources: &[&Resource]) -> Vec<analyze::Finding> {
        let written: HashSet<_> = resources
            .iter()
            .filter(|resource| reads_tokens(resource))
            .map(|resource| resource.name().namespace)
            .collect();
        let read = |namespace: &str| {
            self.token_readers.contains_key(namespace) || written.contains(namespace)
        };
        if read(SYSTEM_NAMESPACE) {
            return Vec::new();
        }
        // A policy of the mesh's namespace holds everywhere, also where tokens are read.
        let nowhere = self.token_readers.is_empty() && written.is_empty();
        let unread = resources.iter().filter(|resource| match &*resource.name().namespace {
            SYSTEM_NAMESPACE => nowhere,
            namespace => !read(namespace),
        });
        unread.flat_map(|resource| analyze::without_tokens(resource)).collect()
    }

    fn take_stirred(&mut self, most: usize) -> Vec<Key> {
        let taken: Vec<Key> = self.stirred.iter().take(most).cloned().collect();
        taken.iter().for_each(|key| _ = self.stirred.remove(key));
        taken
    }

    fn of(&self, key: &Key) -> Option<Said> {
        let resource = self.resources.get(key)?;
        let mut all = self.beside(&[resource]);
        all.push(resource.clone());
        let mut found = by_resource(&all, self.without_tokens(&[resource]));
        Some(found.remove(&resource.key()).unwrap_or_default())
    }

    /// What has to be seen together with these: what they refer to, and whatever claims
    /// what they claim.
    fn beside(&self, resources: &[&Resource]) -> Vec<Resource> {
        let own: HashSet<Key> =
            resources.iter().map(|resource| stored_key(resource.key())).collect();
        let mut wanted = HashSet::new();
        for resource in resources {
            wanted.extend(referents(resource));
            for place in places(resource) {
                wanted.extend(self.by_claim.get(&place).into_iter().flatten().cloned());
            }
        }
        wanted.difference(&own).filter_map(|key| self.resources.get(key)).cloned().collect()
    }
}

fn forget<K: Eq + Hash>(kept: &mut HashMap<K, HashSet<Key>>, place: &K, key: &Key) {
    if let Some(keys) = kept.get_mut(place) {
        keys.remove(key);
        if keys.is_empty() {
            kept.remove(place);
        }
    }
}

fn by_resource(resources: &[Resource], more: Vec<analyze::Finding>) -> HashMap<ResourceKey, Said> {
    let mut found: HashMap<ResourceKey, Said> = HashMap::new();
    for finding in analyze::findings(resources).into_iter().chain(more) {
        found.entry(finding.key).or_default().push((finding.path, finding.message));
    }
    found
}

fn reads_tokens(resource: &Resource) -> bool {
    matches!(&resource.model, Model::RequestAuthentication(policy) if !policy.rules.is_empty())
}

fn referents(resource: &Resource) -> impl Iterator<Item = Key> {
    analyze::referents(resource).into_iter().map(stored_key)
}

fn stored_key(ResourceKey { kind, name }: ResourceKey) -> Key {
    Key::new(kind.group, kind.plural, &name.namespace, &name.name)
}

fn places(resource: &Resource) -> HashSet<Place> {
    let hash = |claim: analyze::Claim| {
        let mut hasher = DefaultHasher::new();
        claim.place.hash(&mut hasher);
        hasher.finish()
    };
    analyze::claims(resource).into_iter().map(hash).collect()
}

fn parse(stored: &Stored) -> Option<Resource> {
    let object = stored.json().map_err(|error| error.to_string());
    let resource = object.and_then(|o| Resource::from_json(o).map_err(|error| error.to_string()));
    resource
        .inspect_err(|error| tracing::warn!(resource = %stored.key, error, "a stored resource does not parse"))
        .ok()
}

#[cfg(test)]
mod tests;
