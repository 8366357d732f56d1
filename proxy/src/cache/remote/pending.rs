//! What Redis has yet to forget. Nothing of it is lost: what becomes too much becomes everything.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::services;

/// Paths, and as many services: beyond that everything of the policy is to be forgotten.
const MOST: usize = 1024;

/// What is to be forgotten, each with a number that is another one when it is wanted again.
#[derive(Debug, Default)]
pub struct Pending {
    all: Mutex<All>,
    /// How much: looked at for every request.
    count: AtomicUsize,
    added: Notify,
}

#[derive(Debug, Default)]
struct All {
    numbered: u64,
    shelves: HashMap<String, u64>,
    services: HashMap<String, u64>,
}

/// One thing to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Void {
    /// A path of a port.
    Shelf(String, u64),
    /// A service, with or without its port; empty: everything.
    Service(String, u64),
}

impl Pending {
    /// A path of a port.
    pub fn add_shelf(&self, shelf: &str) {
        let mut all = self.lock();
        all.numbered += 1;
        let number = all.numbered;
        all.shelves.insert(shelf.to_owned(), number);
        if all.shelves.len() > MOST {
            all.shelves.clear();
            all.services.insert(String::new(), number);
        }
        self.tell(&all);
    }

    /// A service, with or without its port; empty: everything.
    pub fn add_service(&self, service: &str) {
        let mut all = self.lock();
        all.numbered += 1;
        let number = all.numbered;
        all.services.insert(service.to_owned(), number);
        if all.services.len() > MOST {
            all.services.clear();
            all.services.insert(String::new(), number);
        }
        self.tell(&all);
    }

    /// Whether what is in Redis for this path may be void.
    pub fn concerns(&self, shelf: &str) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let (service, port) = services(shelf);
        let all = self.lock();
        all.shelves.contains_key(shelf)
            || ["", service, port].iter().any(|name| all.services.contains_key(*name))
    }

    /// One of them.
    pub fn first(&self) -> Option<Void> {
        let all = self.lock();
        let service = all.services.iter().next();
        let service = service.map(|(name, number)| Void::Service(name.clone(), *number));
        service.or_else(|| {
            let shelf = all.shelves.iter().next();
            shelf.map(|(name, number)| Void::Shelf(name.clone(), *number))
        })
    }

    /// Redis has forgotten it, unless it was wanted again meanwhile.
    pub fn done(&self, void: &Void) {
        let mut all = self.lock();
        let (names, name, number) = match void {
            Void::Shelf(name, number) => (&mut all.shelves, name, number),
            Void::Service(name, number) => (&mut all.services, name, number),
        };
        if names.get(name) == Some(number) {
            names.remove(name);
        }
        self.count.store(all.len(), Ordering::Release);
    }

    /// Waits for more.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// Wakes whoever waits for more.
    pub fn wake(&self) {
        self.added.notify_one();
    }

    fn tell(&self, all: &All) {
        self.count.store(all.len(), Ordering::Release);
        self.wake();
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn len(&self) -> usize {
        self.shelves.len() + self.services.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_concerned() {
        let pending = Pending::default();
        assert!(!pending.concerns("shop/a:80/x"));
        pending.add_shelf("shop/a:80/x");
        for (service, shelf, expected) in [
            (None, "shop/a:80/x", true),
            (None, "shop/a:80/y", false),
            (Some("shop/b:80"), "shop/b:80/y", true),
            (None, "shop/b:81/y", false),
            (Some("shop/b"), "shop/b:81/y", true),
            (None, "shop/c:81/y", false),
            (Some(""), "shop/c:81/y", true),
        ] {
            service.into_iter().for_each(|service| pending.add_service(service));
            assert_eq!(pending.concerns(shelf), expected, "{shelf}");
        }
        while let Some(void) = pending.first() {
            pending.done(&void);
        }
        assert!(!pending.concerns("shop/a:80/x") && pending.lock().len() == 0);
    }

    #[test]
    fn what_is_wanted_again_meanwhile_is_done_again() {
        let pending = Pending::default();
        pending.add_shelf("a:80/x");
        let first = pending.first().unwrap();
        pending.add_shelf("a:80/x");
        pending.done(&first);
        assert!(pending.concerns("a:80/x"));
        pending.done(&pending.first().unwrap());
        assert!(!pending.concerns("a:80/x"));
    }

    #[test]
    fn too_much_becomes_everything() {
        let pending = Pending::default();
        (0..=MOST).for_each(|at| pending.add_shelf(&format!("a:80/{at}")));
        assert!(pending.concerns("b:80/") && pending.lock().len() == 1);
        (0..=MOST).for_each(|at| pending.add_service(&format!("a/{at}")));
        assert!(pending.concerns("b:80/") && pending.lock().len() <= MOST);
    }
}
