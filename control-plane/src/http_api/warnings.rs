//! What is odd about a resource beside the others: references to nothing, collisions. Shown as
//! `Warning` headers, since the other resource may be on its way.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use leno_api::{Key as ResourceKey, Resource, SYSTEM_NAMESPACE, analyze, model::Model};

use super::Api;
use crate::store::{Change, Error, Key, Selection, Store, Stored, Watch};

const WARNING: HeaderName = HeaderName::from_static("warning");
/// More helps nobody and would outgrow what clients accept as headers.
const MAX_WARNINGS: usize = 10;
const MAX_BYTES: usize = 400;

/// All resources as parsed, by what they claim for themselves. It follows the store, so that a
/// write costs what those cost that claim the same, and not what the whole mesh does.
#[derive(Default)]
pub(super) struct Parsed(Mutex<Option<Index>>);

/// The hash of what is claimed. Two that collide are compared for nothing, no more.
type Place = u64;

struct Index {
    watch: Watch,
    resources: HashMap<Key, Resource>,
    by_claim: HashMap<Place, HashSet<Key>>,
    /// How many policies read tokens, by namespace.
    token_readers: HashMap<Arc<str>, usize>,
}

/// What is odd about a resource that has been, or would be, written: `spec.rules[0]: message`.
pub(super) fn about(api: &Api, resource: &Resource) -> Vec<String> {
    about_many(api, &[resource]).pop().unwrap_or_default()
}

/// The same for resources written together, which see each other.
pub(super) fn about_many(api: &Api, resources: &[&Resource]) -> Vec<Vec<String>> {
    let beside = api
        .parsed
        .look(&*api.store, |index| (index.beside(resources), index.without_tokens(resources)));
    let (mut all, without_tokens) = beside.unwrap_or_else(|error| {
        tracing::warn!(%error, "resources are checked on their own, not beside the others");
        Default::default()
    });
    all.extend(resources.iter().map(|resource| (*resource).clone()));
    let mut found: HashMap<ResourceKey, Vec<String>> = HashMap::new();
    for finding in analyze::findings(&all).into_iter().chain(without_tokens) {
        let text = format!("{}: {}", finding.path, finding.message);
        found.entry(finding.key).or_default().push(text);
    }
    resources.iter().map(|resource| found.remove(&resource.key()).unwrap_or_default()).collect()
}

pub(super) fn attach(response: &mut Response, warnings: &[String]) {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    let rest = (more > 0).then(|| format!("{more} more warnings are not shown"));
    for warning in warnings.iter().take(MAX_WARNINGS).chain(&rest) {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{}\"", quoted(warning))) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// As RFC 9110 wants a quoted string, in ASCII.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            ' '..='~' => out.push(character),
            _ => out.push('?'),
        }
        if out.len() >= MAX_BYTES {
            break;
        }
    }
    out
}

impl Parsed {
    /// Looks at all resources as they are now.
    fn look<T>(&self, store: &dyn Store, look: impl FnOnce(&Index) -> T) -> Result<T, Error> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match kept.take() {
            Some(mut index) => index.follow().map(|()| index).or_else(|_| Index::read(store)),
            None => Index::read(store),
        };
        Ok(look(kept.insert(current?)))
    }
}

impl Index {
    fn read(store: &dyn Store) -> Result<Self, Error> {
        let listing = store.list(&Selection::all());
        let watch = store.watch(listing.revision, Selection::all())?;
        let mut index = Self {
            watch,
            resources: HashMap::new(),
            by_claim: HashMap::new(),
            token_readers: HashMap::new(),
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
        for place in places(&resource) {
            self.by_claim.entry(place).or_default().insert(stored.key.clone());
        }
        if reads_tokens(&resource) {
            *self.token_readers.entry(resource.name().namespace).or_default() += 1;
        }
        self.resources.insert(stored.key.clone(), resource);
    }

    fn remove(&mut self, key: &Key) {
        let Some(resource) = self.resources.remove(key) else { return };
        let namespace = resource.name().namespace;
        if reads_tokens(&resource)
            && let Some(count) = self.token_readers.get_mut(&namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.token_readers.remove(&namespace);
            }
        }
        for place in places(&resource) {
            if let Some(claimants) = self.by_claim.get_mut(&place) {
                claimants.remove(key);
                if claimants.is_empty() {
                    self.by_claim.remove(&place);
                }
            }
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
        let unread = resources.iter().filter(|resource| !read(&resource.name().namespace));
        unread.flat_map(|resource| analyze::without_tokens(resource)).collect()
    }

    /// What has to be seen together with these: what they refer to, and whatever claims
    /// what they claim.
    fn beside(&self, resources: &[&Resource]) -> Vec<Resource> {
        let own: HashSet<Key> = resources.iter().map(|resource| key(resource.key())).collect();
        let mut wanted = HashSet::new();
        for resource in resources {
            wanted.extend(analyze::referents(resource).into_iter().map(key));
            for place in places(resource) {
                wanted.extend(self.by_claim.get(&place).into_iter().flatten().cloned());
            }
        }
        wanted.difference(&own).filter_map(|key| self.resources.get(key)).cloned().collect()
    }
}

fn reads_tokens(resource: &Resource) -> bool {
    matches!(&resource.model, Model::RequestAuthentication(policy) if !policy.rules.is_empty())
}

fn key(ResourceKey { kind, name }: ResourceKey) -> Key {
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
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_quoted_line() {
        assert_eq!(quoted("a \"b\"\nc\\é"), "a \\\"b\\\"?c\\\\?");
        assert!(quoted(&"x".repeat(1000)).len() <= MAX_BYTES);
    }
}
