//! What was asked for longest ago makes room.

use super::Policy;
use super::linked::List;

pub struct Lru {
    room: usize,
    kept: List,
}

impl Lru {
    pub fn new(objects: usize, room: usize) -> Self {
        Lru { room, kept: List::new(objects) }
    }
}

impl Policy for Lru {
    fn ask(&mut self, object: usize) -> bool {
        let hit = self.kept.contains(object);
        if hit {
            self.kept.remove(object);
        } else if self.kept.len() >= self.room {
            self.kept.pop_back();
        }
        self.kept.push_front(object);
        hit
    }
}
