//! Lists of objects, each object in at most one place, with every operation in constant time.

/// Objects are places in it.
pub struct List {
    /// Behind and before each object; the last place is the list's own ends.
    next: Vec<usize>,
    before: Vec<usize>,
    length: usize,
}

const NOWHERE: usize = usize::MAX;

impl List {
    /// An empty one for objects below `objects`.
    pub fn new(objects: usize) -> Self {
        let mut next = vec![NOWHERE; objects + 1];
        if let Some(end) = next.last_mut() {
            *end = objects;
        }
        List { before: next.clone(), next, length: 0 }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn contains(&self, object: usize) -> bool {
        self.next.get(object).is_some_and(|next| *next != NOWHERE)
    }

    /// Puts an object that is not in it at the front.
    pub fn push_front(&mut self, object: usize) {
        let end = self.next.len() - 1;
        let first = set(&mut self.next, end, object);
        set(&mut self.before, first, object);
        set(&mut self.next, object, first);
        set(&mut self.before, object, end);
        self.length += 1;
    }

    /// Takes an object out that is in it.
    pub fn remove(&mut self, object: usize) {
        let next = set(&mut self.next, object, NOWHERE);
        let before = set(&mut self.before, object, NOWHERE);
        set(&mut self.next, before, next);
        set(&mut self.before, next, before);
        self.length -= 1;
    }

    pub fn to_front(&mut self, object: usize) {
        self.remove(object);
        self.push_front(object);
    }

    /// The one at the back.
    pub fn last(&self) -> Option<usize> {
        self.before.last().copied().filter(|_| self.length > 0)
    }

    pub fn pop_back(&mut self) -> Option<usize> {
        let last = self.last()?;
        self.remove(last);
        Some(last)
    }
}

/// What was there before.
fn set(links: &mut [usize], at: usize, to: usize) -> usize {
    links.get_mut(at).map_or(NOWHERE, |link| std::mem::replace(link, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order() {
        let mut list = List::new(5);
        assert_eq!(list.pop_back(), None);
        [0, 1, 2, 3].into_iter().for_each(|object| list.push_front(object));
        list.to_front(0);
        list.remove(2);
        assert!(list.contains(3) && !list.contains(2) && !list.contains(4));
        assert_eq!((list.len(), list.last()), (3, Some(1)));
        let order: Vec<_> = std::iter::from_fn(|| list.pop_back()).collect();
        assert_eq!(order, [1, 3, 0]);
    }
}
