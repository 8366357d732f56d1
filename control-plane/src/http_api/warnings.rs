//! What is odd about a resource beside the others: references to nothing, collisions. Shown as
//! `Warning` headers, since the other resource may be on its way.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use leno_api::{
    Resource,
    analyze::{self, Reference},
    model::ObjectName,
};

use super::Api;
use crate::store::{Key, Selection, Store, Stored};

const WARNING: HeaderName = HeaderName::from_static("warning");
/// More helps nobody and would outgrow what clients accept as headers.
const MAX_WARNINGS: usize = 10;
const MAX_BYTES: usize = 400;

/// Resources as they were last parsed, by the revision of their content: a write needs to look at
/// all others of its kind, but only few of them have changed since the last one.
#[derive(Debug, Default)]
pub(super) struct Parsed(Mutex<HashMap<Key, (u64, Arc<Entry>)>>);

#[derive(Debug)]
struct Entry {
    resource: Resource,
    services: HashSet<ObjectName>,
}

/// What is odd about a resource that has been, or would be, written: `spec.rules[0]: message`.
pub(super) fn about(api: &Api, resource: &Resource) -> Vec<String> {
    let own = resource.key();
    let references = analyze::references(resource);
    if references.is_empty() {
        return Vec::new();
    }
    let services = services(&references);
    let mut beside: Vec<Resource> = services.iter().filter_map(|name| service(api, name)).collect();
    let others = api.parsed.of_kind(&*api.store, resource.kind.group, resource.kind.plural);
    let meeting = others.iter().filter(|other| !other.services.is_disjoint(&services));
    beside.extend(meeting.map(|other| other.resource.clone()).filter(|other| other.key() != own));
    beside.push(resource.clone());
    let findings = analyze::findings(&beside).into_iter().filter(|finding| finding.key == own);
    findings.map(|finding| format!("{}: {}", finding.path, finding.message)).collect()
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

fn services(references: &[Reference]) -> HashSet<ObjectName> {
    references.iter().map(|reference| reference.service.clone()).collect()
}

fn service(api: &Api, name: &ObjectName) -> Option<Resource> {
    let key = Key::new("leno.dev", "services", &name.namespace, &name.name);
    api.store.get(&key).and_then(|stored| parse(&stored))
}

fn parse(stored: &Stored) -> Option<Resource> {
    let object = stored.json().map_err(|error| error.to_string());
    let resource = object.and_then(|o| Resource::from_json(o).map_err(|error| error.to_string()));
    resource.inspect_err(|error| tracing::warn!(resource = %stored.key, error, "a stored resource does not parse")).ok()
}

impl Parsed {
    fn of_kind(&self, store: &dyn Store, group: &str, plural: &str) -> Vec<Arc<Entry>> {
        let listing = store.list(&Selection::kind(group, plural));
        let mut parsed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = HashMap::with_capacity(listing.items.len());
        for stored in &listing.items {
            let known =
                parsed.remove(&stored.key).filter(|(content, _)| *content == stored.content);
            let entry = known.map(|(_, entry)| entry).or_else(|| Entry::of(stored).map(Arc::new));
            if let Some(entry) = entry {
                kept.insert(stored.key.clone(), (stored.content, entry));
            }
        }
        let entries = kept.values().map(|(_, entry)| entry.clone()).collect();
        // What is left of this kind has been deleted.
        parsed.retain(|key, _| (&*key.group, &*key.plural) != (group, plural));
        parsed.extend(kept);
        entries
    }
}

impl Entry {
    fn of(stored: &Stored) -> Option<Self> {
        let resource = parse(stored)?;
        let services = services(&analyze::references(&resource));
        Some(Self { resource, services })
    }
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
