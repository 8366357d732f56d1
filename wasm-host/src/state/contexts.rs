//! The contexts of an instance by their numbers. Each callback and each host function looks one up several times, so the
//! number says where it is: its last bits are the place. Numbers are ours to give, and one whose place is taken is
//! skipped.

use crate::abi::ContextId;

/// Places at first.
const FEWEST: usize = 16;

/// What each context has.
pub(crate) struct Contexts<T> {
    /// A power of two of them, at least twice as many as are taken.
    places: Vec<Option<(u32, T)>>,
    taken: usize,
    last: u32,
}

impl<T> Default for Contexts<T> {
    fn default() -> Self {
        Self { places: Vec::new(), taken: 0, last: ContextId::ROOT.number() }
    }
}

impl<T> Contexts<T> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    /// Puts one more in. Numbers go up, and begin anew after 4 billion.
    pub(crate) fn insert(&mut self, context: T) -> u32 {
        if (self.taken + 1) * 2 > self.places.len() {
            self.grow();
        }
        loop {
            self.last = self.last.wrapping_add(1);
            let id = self.last;
            let at = self.place(id);
            // Half of them are free, so that this ends.
            if let Some(place @ None) = self.places.get_mut(at)
                && id > ContextId::ROOT.number()
            {
                *place = Some((id, context));
                self.taken += 1;
                return id;
            }
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        match self.places.get(self.place(id)) {
            Some(Some((known, context))) if *known == id => Some(context),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let at = self.place(id);
        match self.places.get_mut(at) {
            Some(Some((known, context))) if *known == id => Some(context),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let at = self.place(id);
        let place = self.places.get_mut(at)?;
        let (_, context) = place.take_if(|(known, _)| *known == id)?;
        self.taken -= 1;
        Some(context)
    }

    fn place(&self, id: u32) -> usize {
        id as usize & self.places.len().wrapping_sub(1)
    }

    /// Numbers that differ in their last bits differ in more of them, too: none is in another one's way.
    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(FEWEST);
        let before = std::mem::take(&mut self.places);
        self.places.resize_with(places, || None);
        for (id, context) in before.into_iter().flatten() {
            let at = self.place(id);
            if let Some(place) = self.places.get_mut(at) {
                *place = Some((id, context));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn numbers_go_up_from_the_root() {
        let mut contexts = Contexts::default();
        assert_eq!(contexts.get(0), None::<&u32>);
        assert_eq!((contexts.insert(7), contexts.insert(8), contexts.insert(9)), (2, 3, 4));
        assert_eq!(contexts.remove(3), Some(8));
        assert_eq!((contexts.remove(3), contexts.get(3)), (None, None));
        assert_eq!(contexts.insert(10), 5);
        assert_eq!((contexts.get(2), contexts.get(5), contexts.len()), (Some(&7), Some(&10), 3));
    }

    #[test]
    fn what_lives_is_found_and_nothing_else() {
        let mut contexts = Contexts::default();
        let mut model = HashMap::new();
        for step in 0_u32..20_000 {
            let id = contexts.insert(step);
            assert_eq!(model.insert(id, step), None, "{id} lives already");
            // Some stay for long, the rest goes at once.
            let gone =
                if step % 7 == 0 { step.wrapping_mul(2_654_435_761) % (step + 1) } else { id };
            assert_eq!(contexts.remove(gone), model.remove(&gone), "{gone}");
        }
        assert_eq!(contexts.len(), model.len());
        assert!(model.iter().all(|(id, step)| contexts.get(*id) == Some(step)));
    }

    #[test]
    fn numbers_begin_anew_and_skip_what_lives() {
        let mut contexts = Contexts { last: u32::MAX - 1, ..Contexts::default() };
        let found: Vec<u32> = (0..4).map(|_| contexts.insert(())).collect();
        assert_eq!(found, [u32::MAX, 2, 3, 4]);
        contexts.last = 1;
        assert_eq!(contexts.insert(()), 5);
    }
}
